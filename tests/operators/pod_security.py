"""Pod Security Standard "restricted", as Kubernetes publishes it: the fields it forbids, and those it wants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Spec = dict[str, Any]
_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SECCOMP = ("RuntimeDefault", "Localhost")


def find_violations(pod: Spec) -> list[str]:
    """A sentence for each field that "restricted" (which includes "baseline") does not take."""
    spec = pod["spec"]
    return [
        *_of_pod(spec),
        *(text for container in _containers(spec) for text in _of_container(container, spec)),
    ]


def _containers(spec: Spec) -> list[Spec]:
    return [container for key in ("initContainers", "containers") for container in spec.get(key) or []]


def _of_pod(spec: Spec) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{field} is set"
    for volume in spec.get("volumes") or []:
        if not set(volume) - {"name"} <= _VOLUMES:
            yield f"volume {volume['name']} is of a forbidden type"
    context = spec.get("securityContext") or {}
    if context.get("sysctls"):
        yield "sysctls are set"
    if context.get("runAsUser") == 0:
        yield "the pod runs as root"


def _of_container(container: Spec, spec: Spec) -> Iterator[str]:
    pod, own = spec.get("securityContext") or {}, container.get("securityContext") or {}
    capabilities = own.get("capabilities") or {}
    seccomp = own.get("seccompProfile") or pod.get("seccompProfile") or {}
    rules = {
        "it is privileged": not own.get("privileged"),
        "allowPrivilegeEscalation is not false": own.get("allowPrivilegeEscalation") is False,
        "runAsNonRoot is not true": own.get("runAsNonRoot", pod.get("runAsNonRoot")) is True,
        "it runs as root": own.get("runAsUser") != 0,
        "it has no seccomp profile": seccomp.get("type") in _SECCOMP,
        "capabilities are not dropped": "ALL" in capabilities.get("drop", []),
        "capabilities are added": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
        "procMount is set": own.get("procMount", "Default") == "Default",
        "a host port is used": not any(port.get("hostPort") for port in container.get("ports") or []),
    }
    yield from (f"{container['name']}: {violation}" for violation, kept in rules.items() if not kept)
