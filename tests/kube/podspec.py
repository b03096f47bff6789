"""From a pod's spec to what a local process needs: environment, command line, working directory."""

from __future__ import annotations

import base64
import os
import re
import sys
from pathlib import Path
from typing import Any

from tests.kube.quantities import parse_quantity
from tests.kube.resources import CONFIG_MAPS, SECRETS, Resource
from tests.kube.store import Store

Spec = dict[str, Any]

NODE_IP, POD_IP = "127.0.0.1", "10.244.0.7"
_REFERENCE = re.compile(r"\$(\$)?\(([^()]+)\)")
_IMAGE = re.compile(
    r"^[a-z0-9][\w.-]*(:\d+)?(/[a-z0-9][a-z0-9._-]*)*(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?$"
)
_SUBSCRIPT = re.compile(r"^metadata\.(labels|annotations)\['([^']+)'\]$")


class ConfigError(Exception):
    """A container cannot be made of what the cluster holds: CreateContainerConfigError, with the kubelet's text."""


def is_image_name(image: str) -> bool:
    return _IMAGE.match(image) is not None


def read_data(store: Store, resource: Resource, namespace: str, name: str) -> dict[str, bytes] | None:
    """The decoded entries of a Secret or ConfigMap, or None when there is no such object."""
    obj = store.find(resource, namespace, name)
    if obj is None:
        return None
    data = obj.get("data") or {}
    if resource is SECRETS:
        decoded = {key: base64.b64decode(value) for key, value in data.items()}
        return decoded | {key: value.encode() for key, value in (obj.get("stringData") or {}).items()}
    binary = {key: base64.b64decode(value) for key, value in (obj.get("binaryData") or {}).items()}
    return {key: value.encode() for key, value in data.items()} | binary


def build_env(store: Store, pod: Spec, container: Spec, base_env: dict[str, str]) -> dict[str, str]:
    """The environment of a container. :raises ConfigError: for a reference to what does not exist"""
    env: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        env |= _env_from(store, pod, source)
    for entry in container.get("env") or []:
        if "valueFrom" in entry:
            value = _value_from(store, pod, container, entry["valueFrom"])
        else:
            value = expand(entry.get("value") or "", env)
        if value is not None:
            env[entry["name"]] = value
    return _default_env(pod) | base_env | env


def build_argv(container: Spec, entrypoint: list[str], env: dict[str, str]) -> list[str]:
    """Kubernetes' rule: `command` takes the place of the image's entrypoint, `args` follow either."""
    command = container.get("command") or entrypoint
    return [expand(part, env) for part in [*command, *(container.get("args") or [])]]


def expand(text: str, env: dict[str, str]) -> str:
    """`$(NAME)` is replaced where NAME is known; `$$(NAME)` escapes it."""

    def replace(match: re.Match[str]) -> str:
        escaped, name = match.groups()
        if escaped:
            return f"$({name})"
        return env.get(name, match.group(0))

    return _REFERENCE.sub(replace, text)


def field_value(pod: Spec, path: str) -> str:
    """The downward API's value of a field. :raises ConfigError: for a field that it does not offer"""
    if match := _SUBSCRIPT.match(path):
        kind, key = match.groups()
        return str((pod["metadata"].get(kind) or {}).get(key, ""))
    fields = {
        "metadata.name": pod["metadata"]["name"],
        "metadata.namespace": pod["metadata"]["namespace"],
        "metadata.uid": pod["metadata"]["uid"],
        "spec.nodeName": pod["spec"].get("nodeName", ""),
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", "default"),
        "status.hostIP": NODE_IP,
        "status.podIP": POD_IP,
    }
    if path not in fields:
        raise ConfigError(f"field path not supported: {path}")
    return str(fields[path])


def _default_env(pod: Spec) -> dict[str, str]:
    """What a container sees without asking: nothing of the host but a PATH on which `python` is ours."""
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "HOSTNAME": pod["metadata"]["name"],
        "LANG": "C.UTF-8",
        "KUBERNETES_SERVICE_HOST": "10.96.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
    }


def _env_from(store: Store, pod: Spec, source: Spec) -> dict[str, str]:
    kind, reference = ("secretRef", SECRETS) if "secretRef" in source else ("configMapRef", CONFIG_MAPS)
    name = source[kind]["name"]
    data = read_data(store, reference, pod["metadata"]["namespace"], name)
    if data is None:
        if source[kind].get("optional"):
            return {}
        raise ConfigError(f'{reference.kind.lower()} "{name}" not found')
    return {source.get("prefix", "") + key: value.decode() for key, value in data.items()}


def _value_from(store: Store, pod: Spec, container: Spec, source: Spec) -> str | None:
    if "fieldRef" in source:
        return field_value(pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        return _resource_value(container, source["resourceFieldRef"])
    if "secretKeyRef" in source:
        return _key_value(store, pod, SECRETS, source["secretKeyRef"])
    return _key_value(store, pod, CONFIG_MAPS, source["configMapKeyRef"])


def _key_value(store: Store, pod: Spec, resource: Resource, reference: Spec) -> str | None:
    namespace, name, key = pod["metadata"]["namespace"], reference["name"], reference["key"]
    data = read_data(store, resource, namespace, name)
    if data is not None and key in data:
        return data[key].decode()
    if reference.get("optional"):
        return None
    if data is None:
        raise ConfigError(f'{resource.kind.lower()} "{name}" not found')
    raise ConfigError(f"couldn't find key {key} in {resource.kind} {namespace}/{name}")


def _resource_value(container: Spec, reference: Spec) -> str:
    kind, _, name = reference["resource"].partition(".")
    quantity = (container.get("resources", {}).get(kind) or {}).get(name)
    divisor = parse_quantity(reference.get("divisor") or "1") or 1
    return str(-(-parse_quantity(quantity or "0") // divisor).__int__())
