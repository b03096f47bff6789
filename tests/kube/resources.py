"""Which kinds the server serves, and where: the built-in ones, and custom ones that a test adds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


@dataclass(frozen=True)
class Resource:
    """One kind at one group and version.

    :param custom: defined by a CustomResourceDefinition: strategic merge patches are refused
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = False
    custom: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """The name that API errors use: `pods`, `trainjobs.trainer.kubeflow.org`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


PODS = Resource("", "v1", "pods", "Pod", status=True)
EVENTS = Resource("", "v1", "events", "Event")
SECRETS = Resource("", "v1", "secrets", "Secret")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", status=True)
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False, status=True)
NODES = Resource("", "v1", "nodes", "Node", namespaced=False, status=True)
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
SERVICES = Resource("", "v1", "services", "Service", status=True)
JOBS = Resource("batch", "v1", "jobs", "Job", status=True)

_BUILT_IN = (
    PODS,
    EVENTS,
    SECRETS,
    CONFIG_MAPS,
    CLAIMS,
    NAMESPACES,
    NODES,
    SERVICE_ACCOUNTS,
    SERVICES,
    JOBS,
)


@dataclass
class Registry:
    """The served kinds, and their discovery documents."""

    served: list[Resource] = field(default_factory=lambda: list(_BUILT_IN))

    def __iter__(self) -> Iterator[Resource]:
        return iter(self.served)

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        wanted = (group, version, plural)
        return next((r for r in self.served if (r.group, r.version, r.plural) == wanted), None)

    def by_kind(self, api_version: str, kind: str) -> Resource | None:
        return next((r for r in self.served if (r.api_version, r.kind) == (api_version, kind)), None)

    def core_versions(self) -> dict[str, Any]:
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}

    def groups(self) -> dict[str, Any]:
        names = dict.fromkeys(r.group for r in self.served if r.group)
        groups = [group for name in names if (group := self.group(name))]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}

    def group(self, name: str) -> dict[str, Any] | None:
        versions = list(dict.fromkeys(r.version for r in self.served if r.group == name))
        if not versions:
            return None
        entries = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
        return {
            "kind": "APIGroup",
            "apiVersion": "v1",
            "name": name,
            "versions": entries,
            "preferredVersion": entries[0],
        }

    def resources(self, group: str, version: str) -> dict[str, Any] | None:
        served = [r for r in self.served if (r.group, r.version) == (group, version)]
        if not served:
            return None
        entries = [entry for resource in served for entry in _discovery_entries(resource)]
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": served[0].api_version,
            "resources": entries,
        }


def _discovery_entries(resource: Resource) -> Iterator[dict[str, Any]]:
    common = {"namespaced": resource.namespaced, "kind": resource.kind}
    yield common | {"name": resource.plural, "singularName": resource.kind.lower(), "verbs": _VERBS}
    if resource.status:
        verbs = ["get", "patch", "update"]
        yield common | {"name": f"{resource.plural}/status", "singularName": "", "verbs": verbs}
    if resource is PODS:
        yield common | {"name": "pods/log", "singularName": "", "verbs": ["get"]}
        yield common | {"name": "pods/eviction", "singularName": "", "verbs": ["create"]}
