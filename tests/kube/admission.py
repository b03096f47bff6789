"""What the API server does to an object before it stores it: defaults, and the refusals a client may meet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kubernetes.client import models

from tests.kube.errors import ApiError, forbidden, invalid
from tests.kube.quantities import parse_quantity
from tests.kube.resources import CONFIG_MAPS, NAMESPACES, PODS, SECRETS, SERVICE_ACCOUNTS, Resource
from tests.kube.store import Store

_DNS_SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_DNS_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_LABEL_VALUE = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
_LABEL_KEY = re.compile(r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
_ENV_NAME = re.compile(r"^[\x20-\x3c\x3e-\x7e]+$")
_MAX_LABEL, _MAX_NAME, _MAX_DATA_BYTES = 63, 253, 1024 * 1024
_DEFAULT_SPEC = {
    "restartPolicy": "Always",
    "terminationGracePeriodSeconds": 30,
    "dnsPolicy": "ClusterFirst",
    "serviceAccountName": "default",
    "schedulerName": "default-scheduler",
}
Cause = tuple[str, str]


def admit(
    store: Store, resource: Resource, namespace: str, obj: dict[str, Any], *, strict: bool
) -> dict[str, Any]:
    """`obj` as it will be stored. :raises ApiError: as the API server, with its sentences"""
    metadata = obj.get("metadata") or {}
    name = metadata.get("name") or metadata.get("generateName", "") + "xxxxx"
    if resource.namespaced:
        store.get(NAMESPACES, "", namespace)
    _check_identity(resource, namespace, obj)
    if strict and (unknown := list(_unknown_fields(obj, f"V1{resource.kind}", ""))):
        quoted = ", ".join(f'unknown field "{field}"' for field in unknown)
        raise ApiError(
            400,
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: strict decoding error: {quoted}',
        )
    causes = [*_metadata_causes(metadata, name), *_data_causes(resource, obj)]
    if resource is PODS:
        causes += _pod_causes(obj.get("spec") or {})
    if causes:
        raise invalid(resource, name, causes)
    return _with_defaults(store, namespace, name, obj) if resource is PODS else obj


def check_update(resource: Resource, old: dict[str, Any], new: dict[str, Any]) -> None:
    """:raises ApiError: 422 for a change to what cannot be changed"""
    name = new["metadata"]["name"]
    causes = list(_metadata_causes(new["metadata"], name))
    if resource is PODS and _fixed(old["spec"]) != _fixed(new["spec"]):
        causes.append(
            ("spec", "Forbidden: pod updates may not change fields other than `spec.containers[*].image`")
        )
    if old.get("immutable") and old.get("data") != new.get("data"):
        causes.append(("data", "Forbidden: field is immutable when `immutable` is set"))
    if causes:
        raise invalid(resource, name, causes)


def _check_identity(resource: Resource, namespace: str, obj: dict[str, Any]) -> None:
    api_version, kind = obj.get("apiVersion", resource.api_version), obj.get("kind", resource.kind)
    if (api_version, kind) != (resource.api_version, resource.kind):
        message = (
            f"the object provided is unrecognized: no kind {kind!r} is registered for version {api_version!r}"
        )
        raise ApiError(400, message)
    metadata = obj.get("metadata") or {}
    if resource.namespaced and metadata.get("namespace", namespace) != namespace:
        raise ApiError(
            400, "the namespace of the provided object does not match the namespace sent on the request"
        )
    if not metadata.get("name") and not metadata.get("generateName"):
        raise invalid(resource, "", [("metadata.name", "Required value: name or generateName is required")])


def _with_defaults(store: Store, namespace: str, name: str, pod: dict[str, Any]) -> dict[str, Any]:
    spec = _DEFAULT_SPEC | pod["spec"]
    account = spec["serviceAccountName"]
    if not store.find(SERVICE_ACCOUNTS, namespace, account):
        why = f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'
        raise forbidden(PODS, name, why)
    spec["containers"] = [
        {
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "imagePullPolicy": "IfNotPresent",
            "resources": {},
        }
        | container
        for container in spec["containers"]
    ]
    return pod | {"spec": spec, "status": {"phase": "Pending", "qosClass": _qos_class(spec)}}


def _qos_class(spec: dict[str, Any]) -> str:
    resources = [container.get("resources") or {} for container in spec["containers"]]
    if not any(r.get("requests") or r.get("limits") for r in resources):
        return "BestEffort"
    guaranteed = all(
        (r.get("limits") or {}).get(name)
        and (r.get("requests") or r["limits"]).get(name) == r["limits"][name]
        for r in resources
        for name in ("cpu", "memory")
    )
    return "Guaranteed" if guaranteed else "Burstable"


def _metadata_causes(metadata: dict[str, Any], name: str) -> Iterator[Cause]:
    if len(name) > _MAX_NAME or not _DNS_SUBDOMAIN.match(name):
        why = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'"
        yield "metadata.name", f'Invalid value: "{name}": {why}'
    for key, value in (metadata.get("labels") or {}).items():
        if not _LABEL_KEY.match(key):
            yield (
                "metadata.labels",
                f'Invalid value: "{key}": name part must consist of alphanumeric characters',
            )
        if not isinstance(value, str) or len(value) > _MAX_LABEL or not _LABEL_VALUE.match(value):
            yield (
                "metadata.labels",
                f'Invalid value: "{value}": a valid label must be an empty string or consist of alphanumeric characters, at most 63',
            )
    for key, value in (metadata.get("annotations") or {}).items():
        if not isinstance(value, str):
            yield f"metadata.annotations[{key}]", f"Invalid value: {value!r}: must be a string"


def _data_causes(resource: Resource, obj: dict[str, Any]) -> Iterator[Cause]:
    if resource not in (CONFIG_MAPS, SECRETS):
        return
    if sum(len(str(value).encode()) for value in (obj.get("data") or {}).values()) > _MAX_DATA_BYTES:
        yield "[]", "Too long: may not be more than 1048576 bytes"


def _pod_causes(spec: dict[str, Any]) -> Iterator[Cause]:
    containers = spec.get("containers") or []
    if not containers:
        yield "spec.containers", "Required value"
    names = [volume.get("name") for volume in spec.get("volumes") or []]
    yield from (
        ("spec.volumes", f'Duplicate value: "{name}"') for name in {n for n in names if names.count(n) > 1}
    )
    for index, container in enumerate(containers):
        field = f"spec.containers[{index}]"
        if not _DNS_LABEL.match(container.get("name") or ""):
            yield (
                f"{field}.name",
                f'Invalid value: "{container.get("name")}": a lowercase RFC 1123 label is required',
            )
        if not container.get("image"):
            yield f"{field}.image", "Required value"
        yield from _env_causes(field, container.get("env") or [])
        yield from _mount_causes(field, container.get("volumeMounts") or [], names)
        yield from _quantity_causes(f"{field}.resources", container.get("resources") or {})


def _env_causes(field: str, env: list[dict[str, Any]]) -> Iterator[Cause]:
    for index, entry in enumerate(env):
        if not _ENV_NAME.match(entry.get("name") or ""):
            yield f"{field}.env[{index}].name", f'Invalid value: "{entry.get("name")}"'
        if entry.get("value") and entry.get("valueFrom"):
            yield (
                f"{field}.env[{index}].valueFrom",
                "Invalid value: may not be specified when `value` is not empty",
            )


def _mount_causes(field: str, mounts: list[dict[str, Any]], volumes: list[str | None]) -> Iterator[Cause]:
    paths = [mount.get("mountPath") for mount in mounts]
    for index, mount in enumerate(mounts):
        if mount["name"] not in volumes:
            yield f"{field}.volumeMounts[{index}].name", f'Not found: "{mount["name"]}"'
        if paths.count(mount.get("mountPath")) > 1:
            yield (
                f"{field}.volumeMounts[{index}].mountPath",
                f'Invalid value: "{mount["mountPath"]}": must be unique',
            )


def _quantity_causes(field: str, resources: dict[str, Any]) -> Iterator[Cause]:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    try:
        parsed = {name: parse_quantity(value) for name, value in limits.items()}
        wanted = {name: parse_quantity(value) for name, value in requests.items()}
    except ValueError as error:
        yield field, f"Invalid value: {error}"
        return
    for name, quantity in wanted.items():
        if name in parsed and quantity > parsed[name]:
            yield (
                f"{field}.requests",
                f'Invalid value: "{requests[name]}": must be less than or equal to {name} limit of {limits[name]}',
            )
    for name in (n for n in parsed | wanted if "/" in n):
        if parsed.get(name) != wanted.get(name, parsed.get(name)) or name not in parsed:
            yield (
                f"{field}.limits",
                f"Invalid value: must equal the request of {name}, which cannot be overcommitted",
            )
        elif parsed[name] % 1:
            yield f"{field}.limits[{name}]", f'Invalid value: "{limits[name]}": must be an integer'


def _fixed(spec: dict[str, Any]) -> dict[str, Any]:
    """The part of a pod's spec that cannot be changed any more."""
    mutable = {
        "activeDeadlineSeconds",
        "tolerations",
        "terminationGracePeriodSeconds",
        "schedulingGates",
        "nodeName",
    }
    containers = [{k: v for k, v in c.items() if k not in ("image", "resources")} for c in spec["containers"]]
    return {key: value for key, value in spec.items() if key not in mutable} | {"containers": containers}


def _unknown_fields(value: Any, type_name: str, path: str) -> Iterator[str]:
    """Fields that the Python client's model of a type does not know. Types without a model are not looked into."""
    if match := re.match(r"^(?:list\[|dict\(str, )(\w+)[\])]$", type_name):
        items = value.items() if isinstance(value, dict) else enumerate(value or [])
        for key, item in items:
            where = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}"
            yield from _unknown_fields(item, match.group(1), where)
        return
    model = getattr(models, type_name, None)
    if model is None or not isinstance(value, dict):
        return
    attributes = {json_name: name for name, json_name in model.attribute_map.items()}
    for key, item in value.items():
        where = f"{path}.{key}".lstrip(".")
        if key not in attributes:
            yield where
        elif item is not None:
            yield from _unknown_fields(item, model.openapi_types[attributes[key]], where)
