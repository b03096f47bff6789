"""The patch formats of the Kubernetes API: JSON Patch, JSON Merge Patch, strategic merge and (as a merge) apply."""

from __future__ import annotations

import copy
from typing import Any

import yaml

from tests.kube.errors import ApiError
from tests.kube.resources import Resource

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

# patchMergeKey of the lists that strategic merge merges; every other list is replaced whole.
_MERGE_KEYS = {
    "conditions": "type",
    "containers": "name",
    "containerStatuses": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "initContainers": "name",
    "ownerReferences": "uid",
    "schedulingGates": "name",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
_SET_LISTS = frozenset({"finalizers"})


def apply_patch(resource: Resource, obj: dict[str, Any], content_type: str, body: bytes) -> dict[str, Any]:
    """`obj` with the patch applied, as a new object. :raises ApiError: 415, 400 or 422, as the real server"""
    patch = yaml.safe_load(body) if body else {}
    patched = copy.deepcopy(obj)
    match content_type:
        case "application/json-patch+json":
            return _json_patch(patched, patch)
        case "application/merge-patch+json" | "application/apply-patch+yaml":
            return _merge(patched, patch, strategic=False)  # type: ignore[no-any-return]
        case "application/strategic-merge-patch+json" if not resource.custom:
            return _merge(patched, patch, strategic=True)  # type: ignore[no-any-return]
    supported = f"{JSON_PATCH}, {MERGE_PATCH}, {APPLY_PATCH}"
    message = f"the body of the request was in an unknown format - accepted media types include: {supported}"
    raise ApiError(415, message)


def _merge(target: Any, patch: Any, *, strategic: bool) -> Any:
    if not isinstance(patch, dict):
        return patch
    if not isinstance(target, dict) or patch.get("$patch") == "replace":
        target = {}
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            target.pop(key, None)
        elif strategic and isinstance(value, list) and (key in _MERGE_KEYS or key in _SET_LISTS):
            target[key] = _merge_list(key, target.get(key) or [], value)
        else:
            target[key] = _merge(target.get(key), value, strategic=strategic)
    return target


def _merge_list(name: str, target: list[Any], patch: list[Any]) -> list[Any]:
    if name in _SET_LISTS:
        return target + [item for item in patch if item not in target]
    key = _MERGE_KEYS[name]
    merged = {item[key]: item for item in target}
    for item in patch:
        if item.get("$patch") == "delete":
            merged.pop(item[key], None)
        else:
            merged[item[key]] = _merge(merged.get(item[key], {}), item, strategic=True)
    return list(merged.values())


def _json_patch(target: dict[str, Any], operations: Any) -> dict[str, Any]:
    if not isinstance(operations, list):
        raise ApiError(400, "json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    for operation in operations:
        *parents, last = (
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
        )
        try:
            _operate(_walk(target, parents), last, operation)
        except (KeyError, IndexError, ValueError) as error:
            raise ApiError(
                422, f"the server rejected our request due to an error in our request: {error}"
            ) from error
    return target


def _walk(node: Any, parts: list[str]) -> Any:
    for part in parts:
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node


def _operate(parent: Any, last: str, operation: dict[str, Any]) -> None:
    index: Any = (len(parent) if last == "-" else int(last)) if isinstance(parent, list) else last
    match operation["op"]:
        case "add" if isinstance(parent, list):
            parent.insert(index, operation["value"])
        case "add":
            parent[index] = operation["value"]
        case "replace":
            parent[index]
            parent[index] = operation["value"]
        case "remove":
            del parent[index]
        case "test" if parent[index] != operation["value"]:
            raise ValueError(f"testing value {operation['path']} failed")
        case "test":
            return
        case other:
            raise ValueError(f"unsupported operation {other}")
