"""Which pod is this task's: found again by identity, or created exactly once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import POD_IDENTIFIER_STATE_KEY
from kubernetes.client import models as k8s

from airflow_provider_sft.api_patience import api_status, describe_api_error
from airflow_provider_sft.config_map import adopt_config_map, create_config_map, delete_config_map
from airflow_provider_sft.failures import LaunchFailure, PermanentFailure, TransientFailure
from airflow_provider_sft.pod_outcome import failure_of_pod, has_ended, to_plain
from airflow_provider_sft.quota import find_full_quota
from airflow_provider_sft.try_claim import CLAIM_ANNOTATION, claim_patch

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_sft.pod_run import PodRun

RUN_ID_ANNOTATION = "airflow-provider-sft/run-id"
CONFIG_ANNOTATION = "airflow-provider-sft/config-sha256"

_NOT_FOUND, _CONFLICT = 404, 409
_LEAVING_POLL_S = 2.0
# Beyond the grace period: the kubelet may be slow to report.
_LEAVING_MARGIN_S = 120.0


def digest_config(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


class PodClaim:
    """One task instance's claim on its pod.

    A pod is ours when its run-id annotation is this task instance's, exactly: labels are cut to 63 characters. It is
    told by its uid, never by its name alone. It serves when it runs the config of now, or ended and was not reported.
    """

    def __init__(self, operator: PodRun, context: Context) -> None:
        self._operator = operator
        self._context = context

    def find(self, request: k8s.V1Pod) -> k8s.V1Pod | None:
        """The pod an earlier try or worker left."""
        if not self._operator.reattach_on_restart:
            return None
        for pod in self._own_pods(request):
            if pod.metadata.deletion_timestamp:
                self._wait_until_gone(pod)
            elif self._serves(pod, request):
                self._take_over(pod)
                self._remember(pod)
                return pod
            else:
                self._set_aside(pod)
        return None

    def create(self, request: k8s.V1Pod) -> k8s.V1Pod:
        """The pod of this request, once: an answer that was lost does not create a second one.

        :raises QuotaFullError: there is no room for it now
        :raises LaunchFailure: the API server refuses it
        """
        operator, metadata = self._operator, request.metadata
        body = to_plain(request)
        body["metadata"].setdefault("annotations", {})[CLAIM_ANNOTATION] = operator._claim  # noqa: SLF001
        config_text = operator.long_config()
        if config_text:
            create_config_map(operator, request, config_text)
        try:
            pod = operator.patiently(lambda: operator.client.create_namespaced_pod(metadata.namespace, body))
        except Exception as error:  # noqa: BLE001  # of either kind, told apart by its status
            if api_status(error) != _CONFLICT:
                if config_text:
                    delete_config_map(operator, metadata)
                raise find_full_quota(error) or _refusal(error) from None
            pod = operator.patiently(
                lambda: operator.client.read_namespaced_pod(metadata.name, metadata.namespace)
            )
            if not _is_same_run(pod, request):
                raise LaunchFailure(
                    f"A pod named {metadata.name!r} exists already and is not this task's. Leave random_name_suffix on."
                ) from None
        operator.log.info("Pod %s is created in namespace %s.", pod.metadata.name, pod.metadata.namespace)
        self._remember(pod)
        if config_text:
            adopt_config_map(operator, pod)
        return pod

    def _own_pods(self, request: k8s.V1Pod) -> list[k8s.V1Pod]:
        """The newest first."""
        operator, namespace = self._operator, request.metadata.namespace
        selector = operator._build_find_pod_label_selector(self._context)  # noqa: SLF001  # the parent's
        pods = operator.patiently(
            lambda: operator.client.list_namespaced_pod(namespace, label_selector=selector)
        ).items
        ours = [pod for pod in pods if _is_same_run(pod, request)]
        return sorted(ours, key=lambda pod: str(pod.metadata.creation_timestamp), reverse=True)

    def _serves(self, pod: k8s.V1Pod, request: k8s.V1Pod) -> bool:
        if _annotation(pod, CONFIG_ANNOTATION) != _annotation(request, CONFIG_ANNOTATION):
            self._operator.log.info("Pod %s runs another config; it is replaced.", pod.metadata.name)
            return False
        plain, container = to_plain(pod), self._operator.base_container_name
        if not has_ended(plain, container):
            self._operator.log.info(
                "Pod %s of an earlier try still runs; this try follows it.", pod.metadata.name
            )
            return True
        failure = failure_of_pod(plain, container=container)
        if failure is None or isinstance(failure, PermanentFailure):
            self._operator.log.info(
                "Pod %s ended while nobody watched; its outcome counts.", pod.metadata.name
            )
            return True
        self._operator.log.info("Pod %s ended while nobody watched: %s", pod.metadata.name, failure)
        return False

    def _take_over(self, pod: k8s.V1Pod) -> None:
        """From now on a worker of an earlier try, which may only have been cut off, deletes it no more."""
        operator, metadata = self._operator, pod.metadata
        patch = claim_patch(operator._claim)  # noqa: SLF001  # of one family
        try:
            operator.patiently(
                lambda: operator.client.patch_namespaced_pod(metadata.name, metadata.namespace, patch)
            )
        except Exception as error:  # noqa: BLE001  # it can be followed without
            operator.log.warning(
                "Pod %s cannot be marked as this try's: %s", metadata.name, describe_api_error(error)
            )

    def _set_aside(self, pod: k8s.V1Pod) -> None:
        """Of no use: a running one is deleted, an ended one stays for reading."""
        operator = self._operator
        if has_ended(to_plain(pod), operator.base_container_name):
            operator.patch_already_checked(pod, reraise=False)
            return
        operator.patiently(lambda: operator.pod_manager.delete_pod(pod))
        self._wait_until_gone(pod)

    def _wait_until_gone(self, pod: k8s.V1Pod) -> None:
        """A pod that is being deleted saves, and holds output_dir meanwhile."""
        operator, metadata = self._operator, pod.metadata
        operator.log.info(
            "Pod %s of an earlier try is being deleted; waiting until it has saved.", metadata.name
        )
        grace_s = pod.spec.termination_grace_period_seconds or 0
        end_s = time.monotonic() + grace_s + _LEAVING_MARGIN_S
        while time.monotonic() < end_s:
            try:
                current = operator.patiently(
                    lambda: operator.client.read_namespaced_pod(metadata.name, metadata.namespace)
                )
            except Exception as error:
                if api_status(error) == _NOT_FOUND:
                    return
                raise
            if current.metadata.uid != metadata.uid or current.status.phase in ("Succeeded", "Failed"):
                return
            time.sleep(min(_LEAVING_POLL_S, operator.poll_interval))
        raise TransientFailure(
            f"Pod {metadata.name} of an earlier try is still being deleted; is its node lost? The retry looks again."
        )

    def _remember(self, pod: k8s.V1Pod) -> None:
        if store := self._context.get("task_state_store"):
            identity = {
                "name": pod.metadata.name,
                "namespace": pod.metadata.namespace,
                "uid": pod.metadata.uid,
            }
            store.set(POD_IDENTIFIER_STATE_KEY, identity)


def _is_same_run(pod: k8s.V1Pod, request: k8s.V1Pod) -> bool:
    run_id = _annotation(request, RUN_ID_ANNOTATION)
    return run_id is not None and _annotation(pod, RUN_ID_ANNOTATION) == run_id


def _annotation(pod: k8s.V1Pod, name: str) -> str | None:
    value: str | None = (pod.metadata.annotations or {}).get(name)
    return value


def _refusal(error: Exception) -> Exception:
    """Without the request, which holds the config and the environment."""
    said = describe_api_error(error)
    if api_status(error) is None:
        return error
    return LaunchFailure(f"Kubernetes refuses the pod. It says {said}")
