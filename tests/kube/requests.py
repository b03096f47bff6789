"""What a request asks for: group, version, resource, namespace, name, subresource and verb, read from its path."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import yaml
from aiohttp import web

from tests.kube.errors import ApiError
from tests.kube.patches import APPLY_PATCH
from tests.kube.resources import Registry, Resource

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_TRUE = ("true", "1", "True")


@dataclass(frozen=True)
class Call:
    """A request to one resource."""

    resource: Resource
    verb: str
    namespace: str
    name: str
    subresource: str
    query: dict[str, str]

    @property
    def qualified(self) -> str:
        """The resource as RBAC names it: `pods`, `pods/log`, `jobsets.jobset.x-k8s.io`."""
        return self.resource.qualified + (f"/{self.subresource}" if self.subresource else "")

    def flag(self, name: str) -> bool:
        return self.query.get(name) in _TRUE

    def number(self, name: str) -> int | None:
        return int(self.query[name]) if name in self.query else None


@dataclass
class Request:
    """One request as it was received and answered, for tests to count.

    :param status: 0 when the connection was cut before any answer
    """

    method: str
    path: str
    query: dict[str, str]
    call: Call | None
    user_agent: str
    body: Any = None
    status: int = 0
    at: float = field(default_factory=time.time)

    @property
    def verb(self) -> str:
        return self.call.verb if self.call else ""

    @property
    def resource(self) -> str:
        return self.call.qualified if self.call else ""


def parse_call(registry: Registry, request: web.Request) -> Call | None:
    """The call a request makes, or None when its path names nothing that is served."""
    parts = [part for part in request.path.split("/") if part]
    if parts[:1] == ["api"] and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[:1] == ["apis"] and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    resource = registry.find(group, version, rest[0])
    if resource is None or len(rest) > 3:
        return None
    name, subresource = [*rest[1:], "", ""][:2]
    query = dict(request.query)
    return Call(resource, _verb(request.method, name, query), namespace, name, subresource, query)


def _verb(method: str, name: str, query: dict[str, str]) -> str:
    if method == "GET":
        if query.get("watch") in _TRUE:
            return "watch"
        return "get" if name else "list"
    if method == "DELETE" and not name:
        return "deletecollection"
    return _VERBS.get(method, method.lower())


async def read_object(request: web.Request) -> dict[str, Any]:
    """The JSON (or YAML) object of the body; empty for no body. :raises ApiError: 400 for anything else"""
    body = await request.read()
    if not body:
        return {}
    try:
        parsed = (
            yaml.safe_load(body)
            if request.content_type in (APPLY_PATCH, "application/yaml")
            else json.loads(body)
        )
    except (ValueError, yaml.YAMLError) as error:
        raise ApiError(400, f"the object provided is unrecognized: {error}") from error
    if not isinstance(parsed, dict):
        raise ApiError(400, "the object provided is unrecognized (must be of type Object)")
    return parsed
