"""A config too long for an environment variable, as a ConfigMap that lives as long as its pod."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kubernetes.client import models as k8s

from airflow_provider_sft.api_patience import api_status, describe_api_error
from airflow_provider_sft.contract.names import CONFIG_PATH_ENV_VAR, MAX_ENV_CONFIG_BYTES
from airflow_provider_sft.failures import ConfigFailure, LaunchFailure
from airflow_provider_sft.volumes import Mount, configmap_mount

if TYPE_CHECKING:
    from airflow_provider_sft.pod_access import PodAccess

CONFIG_FILE = "config.json"
_UNNAMED = "named-after-the-pod"
# etcd takes 1.5 MiB, a ConfigMap 1 MiB with its keys.
_MAX_BYTES = 1_048_000
_CONFLICT = 409
_FORBIDDEN = 403


def is_too_long(config_text: str) -> bool:
    """For one environment string."""
    return len(config_text.encode()) > MAX_ENV_CONFIG_BYTES


def unnamed_mount(directory: str) -> Mount:
    """Of a ConfigMap that has no name yet, because its pod has none."""
    return configmap_mount(_UNNAMED, directory)


def name_after_pod(pod: k8s.V1Pod) -> None:
    for volume in pod.spec.volumes or []:
        if volume.config_map and volume.config_map.name == _UNNAMED:
            volume.config_map.name = config_map_name(pod.metadata.name)


def config_map_name(pod_name: str) -> str:
    return f"{pod_name}-config"


def create_config_map(operator: PodAccess, pod: k8s.V1Pod, config_text: str) -> None:
    """Before the pod, which does not start without it.

    :raises PermanentFailure: too long for a ConfigMap too, or not allowed
    """
    size_bytes = len(config_text.encode())
    elsewhere = f"Mount the config as a file and set {CONFIG_PATH_ENV_VAR} to its path in env_vars."
    if size_bytes > _MAX_BYTES:
        raise ConfigFailure(f"The config has {size_bytes:,} bytes, more than a ConfigMap takes. {elsewhere}")
    metadata = k8s.V1ObjectMeta(name=config_map_name(pod.metadata.name), labels=pod.metadata.labels)
    body = k8s.V1ConfigMap(metadata=metadata, data={CONFIG_FILE: config_text}, immutable=True)
    try:
        operator.patiently(lambda: operator.client.create_namespaced_config_map(pod.metadata.namespace, body))
    except Exception as error:
        if api_status(error) == _CONFLICT:
            return  # an earlier answer was lost: the name is this pod's alone
        if api_status(error) == _FORBIDDEN:
            raise LaunchFailure(
                f"The config has {size_bytes:,} bytes, more than the {MAX_ENV_CONFIG_BYTES:,} of an environment "
                f"variable, and Airflow may not create a ConfigMap: {describe_api_error(error)}. Allow it, or: {elsewhere}"
            ) from None
        raise


def adopt_config_map(operator: PodAccess, pod: k8s.V1Pod) -> None:
    """The pod owns it from now on: whoever deletes the pod deletes both."""
    owner: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": pod.metadata.name,
        "uid": pod.metadata.uid,
    }
    try:
        operator.patiently(
            lambda: operator.client.patch_namespaced_config_map(
                config_map_name(pod.metadata.name),
                pod.metadata.namespace,
                {"metadata": {"ownerReferences": [owner]}},
            )
        )
    except Exception as error:  # noqa: BLE001  # it is deleted in the end anyway
        operator.log.warning("The pod cannot own its config: %s", describe_api_error(error))


def delete_config_map(operator: PodAccess, metadata: k8s.V1ObjectMeta) -> None:
    try:
        operator.client.delete_namespaced_config_map(config_map_name(metadata.name), metadata.namespace)
    except Exception as error:  # noqa: BLE001  # the pod's end takes it along
        operator.log.debug("The config's ConfigMap is not deleted: %s", describe_api_error(error))
