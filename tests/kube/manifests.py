"""Small pods for the server's own tests."""

from __future__ import annotations

from typing import Any


def script_pod(
    name: str, script: str, *, labels: dict[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    """A pod whose container `base` runs a shell script and is not restarted.

    :param spec: fields of the pod's spec; those of `base` go into `base`
    """
    base = {"name": "base", "image": "busybox", "command": ["sh", "-c", script], **spec.pop("base", {})}
    metadata = {"name": name, "labels": labels or {}}
    pod_spec = {"restartPolicy": "Never", "containers": [base], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec}


def base_state(pod: dict[str, Any]) -> dict[str, Any]:
    """The state of container `base`; empty before the kubelet has seen the pod."""
    statuses = pod["status"].get("containerStatuses") or [{"name": "base", "state": {}}]
    state: dict[str, Any] = next(status["state"] for status in statuses if status["name"] == "base")
    return state


def waiting_reason(pod: dict[str, Any]) -> str:
    return str(base_state(pod).get("waiting", {}).get("reason", ""))


def has_ended(pod: dict[str, Any]) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def is_running(pod: dict[str, Any]) -> bool:
    return "running" in base_state(pod)


def condition(pod: dict[str, Any], kind: str) -> dict[str, Any]:
    """The condition of this type; empty when there is none."""
    found: list[dict[str, Any]] = [c for c in pod["status"].get("conditions", []) if c["type"] == kind]
    return found[0] if found else {}
