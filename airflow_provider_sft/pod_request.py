"""The pod that a GPU training wants, laid under what the user wrote.

Nothing here wins over a parameter of KubernetesPodOperator, `full_pod_spec` or a pod template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow.providers.cncf.kubernetes.backcompat.backwards_compat_converters import (
    convert_env_vars_or_raise_error,
)
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from kubernetes.client import models as k8s

from airflow_provider_sft.contract.names import EXPECTED_GPUS_ENV_VAR
from airflow_provider_sft.failures import LaunchFailure
from airflow_provider_sft.pod_outcome import to_plain
from airflow_provider_sft.volumes import Mount, make_model

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_LABELS = {"app.kubernetes.io/name": "sft-trainer", "app.kubernetes.io/managed-by": "airflow-provider-sft"}
# What takes nodes away for tidiness' sake leaves a training alone; a lack of nodes still preempts it.
_STEADY = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
_POD_SECURITY = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


@dataclass(frozen=True)
class PodNeeds:
    """What the operator's own parameters ask for.

    :param figures: `cpu`, `memory` and `ephemeral-storage`, each `request/limit`, or one figure for both
    """

    gpus: int
    gpu_resource: str
    figures: Mapping[str, str]
    queue_name: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[Mount] = ()


def lay_under(operator: Any, needs: PodNeeds) -> None:
    """Fill what `operator`, a copy that is about to build its pod, leaves open."""
    written = _written_pod(operator)
    spec = written.spec if written and written.spec else make_model(k8s.V1PodSpec, containers=[])
    container = spec.containers[0] if spec.containers else make_model(k8s.V1Container, name="")
    resources = [build_resources(needs), container.resources, operator.container_resources]
    operator.container_resources = _overlay_resources(resources)
    expected = count_expected_gpus(needs.gpu_resource, operator.container_resources.limits)
    _fill_metadata(operator, needs, written)
    _fill_env(operator, {**needs.env, **expected}, container)
    _fill_volumes(operator, needs, container)
    operator.tolerations = [*(spec.tolerations or []), *_tolerations(needs), *operator.tolerations]
    operator.security_context = _overlay(_POD_SECURITY, spec.security_context, operator.security_context)
    operator.container_security_context = _overlay(
        _CONTAINER_SECURITY, container.security_context, operator.container_security_context
    )
    if operator.image_pull_policy is None:
        operator.image_pull_policy = container.image_pull_policy or "IfNotPresent"
    if operator.automount_service_account_token is None:
        # The trainer talks to no API server.
        operator.automount_service_account_token = bool(spec.automount_service_account_token)


def build_resources(needs: PodNeeds) -> k8s.V1ResourceRequirements:
    requests, limits = {}, {}
    for resource, figure in needs.figures.items():
        requests[resource], limits[resource] = split_figure(resource, figure)
    if needs.gpus:
        # Extended resources cannot be overcommitted: the request follows the limit.
        limits[needs.gpu_resource] = str(needs.gpus)
    return make_model(k8s.V1ResourceRequirements, requests=requests, limits=limits)


def count_expected_gpus(gpu_resource: str, limits: Mapping[str, Any]) -> dict[str, str]:
    """The variable by which the trainer knows how many GPUs its pod has requested; empty for a pod on the CPU.

    A unit of `nvidia.com/gpu` or `amd.com/gpu` is a device. A process sees one MIG slice whatever was requested, and
    other resources count memory or shares of a device: one device at least.
    """
    quantity = str(limits.get(gpu_resource, "0"))
    units = int(quantity) if quantity.isdecimal() else 1
    if not units:
        return {}
    return {EXPECTED_GPUS_ENV_VAR: str(units) if gpu_resource.endswith("/gpu") else "1"}


def split_figure(resource: str, figure: str) -> tuple[str, str]:
    """`"80Gi/200Gi"` is a request and a limit, `"80Gi"` both.

    :raises LaunchFailure: one half is empty
    """
    request, slash, limit = (part.strip() for part in str(figure).partition("/"))
    if not request or (slash and not limit):
        raise LaunchFailure(
            f"{resource} is {figure!r}. Give 'REQUEST/LIMIT' as in '80Gi/200Gi', or one figure for both."
        )
    return request, limit or request


def _written_pod(operator: Any) -> k8s.V1Pod | None:
    """The user's own pod, as the parent would put it together."""
    if operator.pod_template_file:
        template = PodGenerator.deserialize_model_file(operator.pod_template_file)
    elif operator.pod_template_dict:
        template = PodGenerator.deserialize_model_dict(operator.pod_template_dict)
    else:
        return operator.full_pod_spec
    return PodGenerator.reconcile_pods(template, operator.full_pod_spec)


def _fill_metadata(operator: Any, needs: PodNeeds, written: k8s.V1Pod | None) -> None:
    metadata = written.metadata if written and written.metadata else make_model(k8s.V1ObjectMeta)
    queue = {QUEUE_LABEL: needs.queue_name} if needs.queue_name else {}
    operator.labels = {**_LABELS, **queue, **(metadata.labels or {}), **operator.labels}
    operator.annotations = {
        **_STEADY,
        **needs.annotations,
        **(metadata.annotations or {}),
        **operator.annotations,
    }


def _fill_env(operator: Any, env: Mapping[str, str], container: k8s.V1Container) -> None:
    users = convert_env_vars_or_raise_error(operator.env_vars) if operator.env_vars else []
    taken = {variable.name for variable in [*users, *(container.env or [])]}
    ours = [
        make_model(k8s.V1EnvVar, name=name, value=value) for name, value in env.items() if name not in taken
    ]
    operator.env_vars = [*ours, *users]  # a new list: the parent appends to it


def _fill_volumes(operator: Any, needs: PodNeeds, container: k8s.V1Container) -> None:
    users = list(operator.volume_mounts)
    taken = {mount.mount_path for mount in [*users, *(container.volume_mounts or [])]}
    ours = [mount for mount in needs.mounts if mount.volume_mount.mount_path not in taken]
    operator.volume_mounts = [*(mount.volume_mount for mount in ours), *users]
    operator.volumes = [*(mount.volume for mount in ours), *operator.volumes]


def _overlay_resources(layers: Sequence[k8s.V1ResourceRequirements | None]) -> k8s.V1ResourceRequirements:
    """Later layers win, resource by resource."""
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    for layer in layers:
        if layer is not None:
            requests |= layer.requests or {}
            limits |= layer.limits or {}
    return make_model(k8s.V1ResourceRequirements, requests=requests, limits=limits)


def _overlay(*layers: Any) -> dict[str, Any]:
    """Security contexts as the API's JSON; a field of a later layer wins."""
    return {key: value for layer in layers if layer for key, value in to_plain(layer).items()}


def _tolerations(needs: PodNeeds) -> list[k8s.V1Toleration]:
    """GPU nodes are tainted with a resource's name: the whole GPU's also where slices of it are handed out."""
    if not needs.gpus:
        return []
    vendor = needs.gpu_resource.partition("/")[0]
    return [
        make_model(k8s.V1Toleration, key=key, operator="Exists", effect="NoSchedule")
        for key in dict.fromkeys([needs.gpu_resource, f"{vendor}/gpu"])
    ]
