"""From a pod to an outcome: pure functions over a pod as JSON. They know nothing of clients and of Airflow's tasks."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_sft.contract.exit_codes import ExitCode
from airflow_provider_sft.contract.outcome import Result
from airflow_provider_sft.contract.progress import Progress
from airflow_provider_sft.failures import (
    InterruptedFailure,
    MemoryFailure,
    StorageFullFailure,
    TrainingFailure,
    TransientFailure,
    clean_result,
    describe_position,
    failure_of_exit,
)

Pod = dict[str, Any]

_INTERRUPTING_CODES = (int(ExitCode.INTERRUPTED), 137, 143)
# What a pod's own reason or a DisruptionTarget condition means where the trainer had no say.
_INTERRUPTING_REASONS = (
    "NodeLost",
    "NodeShutdown",
    "Terminated",
    "Shutdown",
    "Preempting",
    "DeadlineExceeded",
)
# Kubernetes' own, and the one by which Kueue says that it takes the pod away.
_DISRUPTING_CONDITIONS = ("DisruptionTarget", "TerminationTarget")
_DISRUPTING_EVENTS = (
    "Preempted",
    "Evicted",
    "TaintManagerEviction",
    "NodeNotReady",
    "DeletingNode",
    "ScaleDown",
    "Stopped",  # Kueue's
)
_MAX_MESSAGE_CHARS = 600


def to_plain(model: Any) -> Any:
    """A model of either Kubernetes client as the API's JSON, without what is unset."""
    if isinstance(model, dt.datetime | dt.date):
        return model.isoformat()
    if isinstance(model, list):
        return [to_plain(member) for member in model]
    if isinstance(model, Mapping):
        return {key: to_plain(value) for key, value in model.items()}
    if not hasattr(model, "openapi_types"):
        return model
    names: Mapping[str, str] = model.attribute_map
    return {
        names[attribute]: to_plain(value)
        for attribute in model.openapi_types
        if (value := getattr(model, attribute)) is not None
    }


def find_disruption(events: Sequence[Mapping[str, Any]]) -> str:
    """Kubernetes' own words in the events of a pod that is gone; they outlive it. Empty where there are none."""
    for event in reversed(events):
        if event.get("reason") in _DISRUPTING_EVENTS:
            return f"{event['reason']}: {_full_stop(str(event.get('message', '')))}"
    return ""


def trim_pod(pod: Pod) -> Pod:
    """What the functions here read: identity, resources and status; no environment, so it may be stored."""
    metadata = pod.get("metadata", {})
    containers = pod.get("spec", {}).get("containers", [])
    return {
        "metadata": {key: metadata[key] for key in ("name", "namespace", "uid") if key in metadata},
        "spec": {
            "containers": [{"name": c["name"], "resources": c.get("resources", {})} for c in containers]
        },
        "status": pod.get("status", {}),
    }


def container_state(pod: Pod, container: str) -> Mapping[str, Any]:
    """`{"waiting"|"running"|"terminated": {...}}`, empty before the kubelet has seen the pod."""
    for status in pod.get("status", {}).get("containerStatuses") or []:
        if status["name"] == container:
            state: Mapping[str, Any] = status.get("state") or {}
            return state
    return {}


def has_begun(pod: Pod, container: str) -> bool:
    """It runs or has ended, and so has a log."""
    return bool({"running", "terminated"} & container_state(pod, container).keys())


def has_ended(pod: Pod, container: str) -> bool:
    """The trainer's container has ended, whatever side-cars do."""
    return is_terminal(pod) or "terminated" in container_state(pod, container)


def is_terminal(pod: Pod) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def read_result(pod: Pod, container: str) -> Result | None:
    return clean_result(_terminated(pod, container).get("message"))


def failure_of_pod(
    pod: Pod, *, container: str, gone: bool = False, why_gone: str = "", progress: Progress | None = None
) -> TrainingFailure | None:
    """What ended a pod badly, or None where it succeeded and left a result.

    :param pod: as it was last seen
    :param gone: it does not exist any more
    :param why_gone: from `find_disruption`
    """
    result = read_result(pod, container)
    if gone and not has_ended(pod, container):
        why = _disruption(pod) or why_gone
        return _preemption(why, result, progress) if why else _failure_of_gone_pod(pod, progress)
    exit_code = _terminated(pod, container).get("exitCode")
    if result and result["status"] == "succeeded" and exit_code == 0:
        return None
    return (
        _failure_of_eviction(pod, result, progress)
        or _failure_of_oom(pod, container, result, progress)
        or _failure_of_disruption(pod, exit_code, result, progress)
        or _failure_of_container(pod, container, result, progress)
    )


def _failure_of_gone_pod(pod: Pod, progress: Progress | None) -> TrainingFailure:
    position = describe_position(None, progress)
    return InterruptedFailure(
        _join(
            f"Pod {pod['metadata']['name']} is gone: somebody deleted it, or its node was lost.",
            position,
            "The retry resumes from the newest checkpoint.",
        )
    )


def _failure_of_eviction(
    pod: Pod, result: Result | None, progress: Progress | None
) -> TrainingFailure | None:
    status = pod["status"]
    if status.get("reason") != "Evicted":
        return None
    kubelet_text = str(status.get("message", ""))
    said = _join(f"The pod was evicted: {_full_stop(kubelet_text)}", describe_position(result, progress))
    if "ephemeral" in kubelet_text or "emptyDir" in kubelet_text or "EmptyDir" in kubelet_text:
        advice = "Raise ephemeral_storage above what it used, or write checkpoints to a volume."
        return StorageFullFailure(f"{said} {advice}", result=result)
    if "resource: memory" in kubelet_text:
        return MemoryFailure(
            f"{said} Raise memory, the request too: {ExitCode.OUT_OF_MEMORY.advice}", result=result
        )
    return InterruptedFailure(f"{said} The retry resumes.", result=result)


def _failure_of_oom(
    pod: Pod, container: str, result: Result | None, progress: Progress | None
) -> TrainingFailure | None:
    if _terminated(pod, container).get("reason") != "OOMKilled":
        return None
    limit = _memory_limit(pod, container)
    of_limit = f"its memory limit of {limit}" if limit else "the node's memory"
    position = describe_position(result, progress)
    return MemoryFailure(
        _join(
            f"The container reached {of_limit} and was killed (OOMKilled).",
            position,
            ExitCode.OUT_OF_MEMORY.advice,
        ),
        result=result,
    )


def _failure_of_disruption(
    pod: Pod, exit_code: int | None, result: Result | None, progress: Progress | None
) -> TrainingFailure | None:
    why = _disruption(pod)
    if why is None or (exit_code is not None and exit_code not in _INTERRUPTING_CODES):
        return None
    return _preemption(why, result, progress)


def _preemption(why: str, result: Result | None, progress: Progress | None) -> TrainingFailure:
    step = progress["step"] if progress else result.get("steps") if result else None
    at_step = f" at step {step}" if step else ""
    checkpoint = result.get("last_checkpoint_step") if result else None
    resumes = f"step {checkpoint}" if checkpoint else "the newest checkpoint"
    return InterruptedFailure(
        f"The pod was preempted{at_step} and resumes from {resumes}. Kubernetes says: {why}", result=result
    )


def _failure_of_container(
    pod: Pod, container: str, result: Result | None, progress: Progress | None
) -> TrainingFailure | None:
    terminated = _terminated(pod, container)
    if not terminated:
        status = pod["status"]
        text = _full_stop(f"{status.get('reason', 'no reason')}: {status.get('message', 'no message')}")
        return TransientFailure(f"The pod failed before its container ran. {text} The retry starts another.")
    failure = failure_of_exit(int(terminated["exitCode"]), result, progress=progress)
    left = str(terminated.get("message") or "").strip()
    if failure is None or result or not left:
        return failure
    return type(failure)(f"{failure} It left this message: {left[:_MAX_MESSAGE_CHARS]}")


def _join(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def _disruption(pod: Pod) -> str | None:
    """Kubernetes' own words, where it took the pod away."""
    status = pod.get("status", {})
    for condition in status.get("conditions") or []:
        if condition.get("type") in _DISRUPTING_CONDITIONS and condition.get("status") == "True":
            return f"{condition.get('reason', condition['type'])}: {_full_stop(condition.get('message', ''))}"
    if status.get("reason") in _INTERRUPTING_REASONS:
        return f"{status['reason']}: {_full_stop(status.get('message', ''))}"
    return None


def _terminated(pod: Pod, container: str) -> Mapping[str, Any]:
    terminated: Mapping[str, Any] = container_state(pod, container).get("terminated", {})
    return terminated


def _memory_limit(pod: Pod, container: str) -> str | None:
    for spec in pod.get("spec", {}).get("containers", []):
        if spec["name"] == container:
            limit: str | None = spec.get("resources", {}).get("limits", {}).get("memory")
            return limit
    return None


def _full_stop(text: str) -> str:
    text = text.strip()[:_MAX_MESSAGE_CHARS]
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."
