"""A pod that does not run yet: worth waiting for, or hopeless? Pure over the pod and its events as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

from airflow_provider_sft.contract.progress import describe_duration
from airflow_provider_sft.failures import LaunchFailure, TrainingFailure, TransientFailure
from airflow_provider_sft.pod_outcome import Pod, container_state

# A Secret or ConfigMap may be created a moment after the pod; then its absence is final.
_GRACE_S = 10.0
_FATAL_WAITING = ("InvalidImageName", "ErrImageNeverPull", "InvalidImage")
_CONFIG_WAITING = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_PULL_WAITING = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable")
_PULL_REFUSED = re.compile(
    r"\b40[134]\b|unauthori[sz]ed|forbidden|denied|not found|manifest unknown|does not exist|no such host"
    r"|no match for platform|no matching manifest|name unknown|invalid reference",
    re.IGNORECASE,
)
_PULL_TRANSIENT = re.compile(
    r"\b429\b|\b5\d\d\b|too many requests|rate limit|timeout|timed out|unavailable|bad gateway|qps exceeded|reset by peer",
    re.IGNORECASE,
)
_BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*"(: ErrImagePull: )?')
_MAX_PULL_CHARS = 140
_MISSING_OBJECT = re.compile(
    r"(secret|configmap|persistentvolumeclaim|serviceaccount)s? \"[^\"]+\" not found"
    r"|couldn't find key|references non-existent (secret|config) key",
    re.IGNORECASE,
)


@dataclass
class StartWatch:
    """Looks at a pending pod again and again.

    :param schedule_timeout_s: for a node that has what the pod asks for
    :param startup_timeout_s: from the node to the running container: image pull, volumes
    """

    container: str
    schedule_timeout_s: float
    startup_timeout_s: float
    _stage: str = ""
    _stage_since_s: float = 0.0
    _missing_since_s: dict[str, float] = field(default_factory=dict)

    def judge(self, pod: Pod, events: Sequence[Mapping[str, Any]], now_s: float) -> TrainingFailure | None:
        """:param now_s: any clock, the same one at each call"""
        if reason := self._hopeless(pod, events, now_s):
            return LaunchFailure(f"The pod cannot start. {reason}")
        return self._timed_out(pod, now_s)

    def _hopeless(self, pod: Pod, events: Sequence[Mapping[str, Any]], now_s: float) -> str | None:
        if refusal := _image_refusal(pod, self.container, events):
            return refusal
        missing = dict.fromkeys(_missing_objects(pod, self.container, events))
        self._missing_since_s = {text: self._missing_since_s.get(text, now_s) for text in missing}
        for text, since_s in self._missing_since_s.items():
            if now_s - since_s >= _GRACE_S:
                return f"{text} Create what is missing, or correct its name in the task."
        return None

    def _timed_out(self, pod: Pod, now_s: float) -> TrainingFailure | None:
        stage = "start" if is_scheduled(pod) else "schedule"
        if stage != self._stage:
            self._stage, self._stage_since_s = stage, now_s
        limit_s = self.startup_timeout_s if stage == "start" else self.schedule_timeout_s
        if now_s - self._stage_since_s < limit_s:
            return None
        waited = f"The pod waited {describe_duration(limit_s)} to {_STAGES[stage]}"
        return TransientFailure(
            f"{waited} and was given up. Last: {describe_waiting(pod, self.container)} "
            f"Raise {stage if stage == 'schedule' else 'startup'}_timeout_seconds, or ask for less."
        )


_STAGES = {"schedule": "be scheduled", "start": "start on its node"}


def is_scheduled(pod: Pod) -> bool:
    return any(
        condition.get("type") == "PodScheduled" and condition.get("status") == "True"
        for condition in pod.get("status", {}).get("conditions") or []
    )


def waiting_topic(pod: Pod, container: str) -> str:
    """What changes when there is something new to log: a pull that is tried again says two things in turn."""
    waiting = container_state(pod, container).get("waiting") or {}
    return "pull" if waiting.get("reason") in _PULL_WAITING else describe_waiting(pod, container)


def describe_waiting(pod: Pod, container: str) -> str:
    """What a pending pod waits for, in the scheduler's or the kubelet's own words."""
    if waiting := container_state(pod, container).get("waiting"):
        message = waiting.get("message")
        if waiting.get("reason") in _PULL_WAITING:
            said = shorten(_BACK_OFF.sub("", message or ""), _MAX_PULL_CHARS, placeholder=" …")
            return f"the image cannot be pulled yet, and Kubernetes tries again{': ' + said if said else ''}"
        return f"{waiting.get('reason', 'waiting')}{': ' + message if message else ''}"
    for condition in pod.get("status", {}).get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") != "True":
            return f"{condition.get('reason', 'not scheduled')}: {condition.get('message', '')}".rstrip(": ")
    return "scheduled, starting" if is_scheduled(pod) else "not scheduled yet"


def _image_refusal(pod: Pod, container: str, events: Sequence[Mapping[str, Any]]) -> str | None:
    waiting = container_state(pod, container).get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _FATAL_WAITING:
        return f"{reason}: {message} Correct image."
    if reason not in _PULL_WAITING:
        return None
    # The state flips between the pull's error and a bare "Back-off pulling image": the events keep the error.
    for text in [
        message,
        *reversed([str(event.get("message", "")) for event in events if _is_pull_failure(event)]),
    ]:
        if _PULL_TRANSIENT.search(text):
            return None
        if _PULL_REFUSED.search(text):
            return f"{reason}: {text} Correct image, or give image_pull_secrets."
    return None


def _is_pull_failure(event: Mapping[str, Any]) -> bool:
    return event.get("reason") == "Failed" and "pull" in str(event.get("message", ""))


def _missing_objects(pod: Pod, container: str, events: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    waiting = container_state(pod, container).get("waiting") or {}
    if waiting.get("reason") in _CONFIG_WAITING:
        yield f"{waiting['reason']}: {waiting.get('message', 'no message')}."
    for condition in pod.get("status", {}).get("conditions") or []:
        if condition.get("type") == "PodScheduled" and _MISSING_OBJECT.search(condition.get("message") or ""):
            yield f"{condition.get('reason')}: {condition['message']}."
    if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
        return
    for event in events:
        if event.get("reason") in ("FailedMount", "FailedAttachVolume") and _MISSING_OBJECT.search(
            event["message"]
        ):
            yield f"{event['reason']}: {event['message']}."
