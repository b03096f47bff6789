"""The objects of the cluster: resourceVersions, uids, the history that watches read, and garbage collection."""

from __future__ import annotations

import asyncio
import copy
import secrets
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.kube.errors import already_exists, conflict, forbidden, not_found
from tests.kube.resources import NAMESPACES, Registry, Resource

_FOREGROUND = "foregroundDeletion"


def now(*, after_s: float = 0) -> str:
    """The time, `after_s` seconds from now, as Kubernetes writes it in objects."""
    moment = datetime.now(UTC) + timedelta(seconds=after_s)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Change:
    """One entry of the history. `previous` is the object before, so that a selector can see it leave."""

    version: int
    verb: str  # ADDED, MODIFIED, DELETED
    resource: Resource
    obj: dict[str, Any]
    previous: dict[str, Any] | None


class Store:
    """Everything that etcd and the garbage collector know. To be used from the server's event loop alone.

    `on_delete` is how the garbage collector deletes; a kubelet replaces it, to give pods their grace.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.on_delete: Callable[[Resource, dict[str, Any]], object] = self.delete
        self.version = 1000
        self.oldest_watchable = 0  # a watch from before this version gets 410 Expired
        self.history: list[Change] = []
        self._objects: dict[tuple[Resource, str, str], dict[str, Any]] = {}
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Return when the next change is made."""
        await self._changed.wait()

    def position_after(self, version: int) -> int:
        """Where in the history the changes after `version` begin."""
        newer = (index for index, change in enumerate(self.history) if change.version > version)
        return next(newer, len(self.history))

    def list(self, resource: Resource, namespace: str = "") -> list[dict[str, Any]]:
        rows = sorted((key[1:], obj) for key, obj in self._objects.items() if key[0] == resource)
        return [obj for (where, _), obj in rows if namespace in ("", where)]

    def find(self, resource: Resource, namespace: str, name: str) -> dict[str, Any] | None:
        return self._objects.get((resource, namespace, name))

    def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any]:
        obj = self.find(resource, namespace, name)
        if obj is None:
            raise not_found(resource, name)
        return obj

    def create(self, resource: Resource, namespace: str, obj: dict[str, Any]) -> dict[str, Any]:
        """Store a new object under a new uid. :raises ApiError: when the name is taken or the namespace absent"""
        obj = copy.deepcopy(obj)
        metadata = obj.setdefault("metadata", {})
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        name = metadata["name"]
        self._check_place(resource, namespace, name)
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1}
        metadata.pop("deletionTimestamp", None)
        if resource.namespaced:
            metadata["namespace"] = namespace
        obj |= {"apiVersion": resource.api_version, "kind": resource.kind}
        return self._put("ADDED", resource, obj, previous=None)

    def update(self, resource: Resource, obj: dict[str, Any]) -> dict[str, Any]:
        """Replace an object by what it became; nothing happens when nothing changed.

        :raises ApiError: when it is gone, or its resourceVersion is set and no longer the newest
        """
        metadata = obj["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        current = self.get(resource, namespace, name)
        check_preconditions(resource, current, metadata)
        obj = copy.deepcopy(obj)
        obj["metadata"] |= {
            key: current["metadata"][key] for key in ("uid", "creationTimestamp", "resourceVersion")
        }
        if obj == current:
            return current
        if obj.get("spec") != current.get("spec"):
            obj["metadata"]["generation"] = current["metadata"].get("generation", 1) + 1
        stored = self._put("MODIFIED", resource, obj, previous=current)
        if (
            stored["metadata"].get("deletionTimestamp")
            and not stored["metadata"].get("finalizers")
            and not _graceful(stored)
        ):
            self.remove(resource, stored)
        return stored

    def delete(self, resource: Resource, obj: dict[str, Any], propagation: str = "Background") -> bool:
        """Delete an object, or mark it when finalizers hold it. True when it is gone."""
        if propagation == "Orphan":
            self._orphan(obj)
        metadata = copy.deepcopy(obj["metadata"])
        blocked = [d for _, d in self._dependents(obj) if _blocks(d, obj)]
        if propagation == "Foreground" and blocked:
            metadata["finalizers"] = [*metadata.get("finalizers", []), _FOREGROUND]
        if metadata.get("finalizers"):
            metadata.setdefault("deletionTimestamp", now())
            self.update(resource, obj | {"metadata": metadata})
            if propagation == "Foreground":
                self._delete_dependents(obj)
            return False
        self.remove(resource, obj)
        return True

    def remove(self, resource: Resource, obj: dict[str, Any]) -> None:
        """Take an object away at once, and what only it owned after it."""
        metadata = obj["metadata"]
        key = (resource, metadata.get("namespace", ""), metadata["name"])
        stored = self._objects.pop(key, None)
        if stored is None:
            return
        self.version += 1
        last = copy.deepcopy(stored)
        last["metadata"]["resourceVersion"] = str(self.version)
        self._publish(Change(self.version, "DELETED", resource, last, stored))
        self._delete_dependents(stored)
        self._release_owners(stored)
        if resource is NAMESPACES:
            self._empty_namespace(metadata["name"])

    def _check_place(self, resource: Resource, namespace: str, name: str) -> None:
        if resource.namespaced:
            home = self.get(NAMESPACES, "", namespace)
            if home["metadata"].get("deletionTimestamp"):
                why = f"unable to create new content in namespace {namespace} because it is being terminated"
                raise forbidden(resource, name, why)
        if self.find(resource, namespace, name):
            raise already_exists(resource, name)

    def _put(
        self, verb: str, resource: Resource, obj: dict[str, Any], *, previous: dict[str, Any] | None
    ) -> dict[str, Any]:
        self.version += 1
        metadata = obj["metadata"]
        metadata["resourceVersion"] = str(self.version)
        self._objects[resource, metadata.get("namespace", ""), metadata["name"]] = obj
        self._publish(Change(self.version, verb, resource, copy.deepcopy(obj), previous))
        return obj

    def _publish(self, change: Change) -> None:
        self.history.append(change)
        waiting, self._changed = self._changed, asyncio.Event()
        waiting.set()

    def _empty_namespace(self, namespace: str) -> None:
        for (resource, where, _), obj in list(self._objects.items()):
            if where == namespace:
                self.on_delete(resource, obj)

    def _dependents(self, owner: dict[str, Any]) -> Iterator[tuple[Resource, dict[str, Any]]]:
        uid = owner["metadata"]["uid"]
        for (resource, _, _), obj in list(self._objects.items()):
            if uid in _owner_uids(obj):
                yield resource, obj

    def _delete_dependents(self, owner: dict[str, Any]) -> None:
        alive = {obj["metadata"]["uid"] for obj in self._objects.values()} - {owner["metadata"]["uid"]}
        for resource, obj in self._dependents(owner):
            if not alive & _owner_uids(obj) and not obj["metadata"].get("deletionTimestamp"):
                self.on_delete(resource, obj)

    def _release_owners(self, removed: dict[str, Any]) -> None:
        """Finish the foreground deletions that waited for `removed`."""
        for (resource, _, _), owner in list(self._objects.items()):
            metadata = owner["metadata"]
            waits = metadata["uid"] in _owner_uids(removed) and _FOREGROUND in metadata.get("finalizers", [])
            if waits and not any(_blocks(d, owner) for _, d in self._dependents(owner)):
                left = [f for f in metadata["finalizers"] if f != _FOREGROUND]
                self.update(resource, owner | {"metadata": metadata | {"finalizers": left}})

    def _orphan(self, owner: dict[str, Any]) -> None:
        for resource, obj in self._dependents(owner):
            metadata = dict(obj["metadata"])
            kept = [r for r in metadata.pop("ownerReferences") if r["uid"] != owner["metadata"]["uid"]]
            self.update(resource, obj | {"metadata": metadata | ({"ownerReferences": kept} if kept else {})})


def check_preconditions(resource: Resource, current: dict[str, Any], wanted: dict[str, Any]) -> None:
    """:raises ApiError: 409 when `wanted` names a uid or resourceVersion that is not the current one"""
    metadata = current["metadata"]
    if wanted.get("uid") not in (None, metadata["uid"]):
        why = f"Precondition failed: UID in precondition: {wanted['uid']}, UID in object meta: {metadata['uid']}"
        raise conflict(resource, metadata["name"], why)
    if wanted.get("resourceVersion") not in (None, "", metadata["resourceVersion"]):
        why = "the object has been modified; please apply your changes to the latest version and try again"
        raise conflict(resource, metadata["name"], why)


def select_changes(changes: Iterable[Change], resource: Resource, namespace: str) -> Iterator[Change]:
    for change in changes:
        where = change.obj["metadata"].get("namespace", "")
        if change.resource == resource and namespace in ("", where):
            yield change


def _owner_uids(obj: dict[str, Any]) -> set[str]:
    return {reference["uid"] for reference in obj["metadata"].get("ownerReferences") or []}


def _blocks(dependent: dict[str, Any], owner: dict[str, Any]) -> bool:
    references = dependent["metadata"].get("ownerReferences") or []
    return any(r["uid"] == owner["metadata"]["uid"] and r.get("blockOwnerDeletion") for r in references)


def _graceful(obj: dict[str, Any]) -> bool:
    """Whether a kubelet still works on the deletion of this pod."""
    return bool(obj["metadata"].get("deletionGracePeriodSeconds"))
