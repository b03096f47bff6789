"""The verbs of the Kubernetes API on any served resource."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from aiohttp import web

from tests.kube.admission import admit, check_update
from tests.kube.errors import ApiError, not_found
from tests.kube.faults import CutWatch, Drained, Faults
from tests.kube.kubelet import Kubelet
from tests.kube.patches import APPLY_PATCH, apply_patch
from tests.kube.pod_logs import cut_stream, send_log
from tests.kube.requests import Call, read_object
from tests.kube.resources import NAMESPACES, PODS, SERVICE_ACCOUNTS
from tests.kube.selectors import Matcher, build_matcher
from tests.kube.store import Change, Store, check_preconditions, select_changes

_MAX_WATCH_S = 1800
_BOOKMARK_S = 0.5


class Api:
    """Answers calls out of the store, and hands pods to the kubelet."""

    def __init__(self, store: Store, kubelet: Kubelet, faults: Faults) -> None:
        self.store, self.kubelet, self.faults = store, kubelet, faults

    async def answer(self, request: web.Request, call: Call) -> web.StreamResponse:
        """:raises ApiError: for whatever the API refuses"""
        if call.subresource and call.subresource != "status":
            return await self._answer_subresource(request, call)
        if call.verb == "watch":
            return await self._watch(request, call)
        if call.verb == "patch":
            return self._patch(call, request.content_type, await request.read())
        answers = {
            "get": self._show,
            "list": self._list,
            "create": self._create,
            "update": self._update,
            "delete": self._delete,
            "deletecollection": self._delete_all,
        }
        if call.verb not in answers or (call.verb == "create" and call.name):
            raise ApiError(405, "the server does not allow this method on the requested resource")
        document = answers[call.verb](call, await read_object(request))
        return _json(document, status=201 if call.verb == "create" else 200)

    async def _answer_subresource(self, request: web.Request, call: Call) -> web.StreamResponse:
        if call.resource is not PODS or call.subresource not in (
            "log",
            "eviction",
            "exec",
            "attach",
            "portforward",
        ):
            raise ApiError(404, "the server could not find the requested resource")
        pod = self._get(call)
        if call.subresource == "log":
            return await send_log(request, call, self.kubelet, self.faults, pod)
        if call.subresource == "eviction":
            self.kubelet.strike(pod, Drained(cordon=False))
            return _json(_success(call), status=201)
        why = "this test server runs no commands in containers; use the termination message"
        raise ApiError(403, f'{call.qualified} "{call.name}" is forbidden: {why}')

    def _get(self, call: Call) -> dict[str, Any]:
        return self.store.get(call.resource, call.namespace, call.name)

    def _show(self, call: Call, _: dict[str, Any]) -> dict[str, Any]:
        return self._get(call)

    def _matching(self, call: Call) -> list[dict[str, Any]]:
        matches = _matcher(call)
        return [obj for obj in self.store.list(call.resource, call.namespace) if matches(obj)]

    def _list(self, call: Call, _: dict[str, Any]) -> dict[str, Any]:
        items = self._matching(call)
        start, limit = int(call.query.get("continue") or 0), call.number("limit") or len(items) or 1
        metadata: dict[str, Any] = {"resourceVersion": str(self.store.version)}
        if start + limit < len(items):
            metadata |= {"continue": str(start + limit), "remainingItemCount": len(items) - start - limit}
        return {
            "kind": f"{call.resource.kind}List",
            "apiVersion": call.resource.api_version,
            "metadata": metadata,
            "items": items[start : start + limit],
        }

    def _create(self, call: Call, body: dict[str, Any]) -> dict[str, Any]:
        if call.resource.namespaced and not call.namespace:
            raise ApiError(405, "the server does not allow this method on the requested resource")
        strict = call.query.get("fieldValidation") == "Strict" and not call.resource.custom
        obj = admit(self.store, call.resource, call.namespace, body, strict=strict)
        if call.resource.custom and call.resource.status:
            obj = {key: value for key, value in obj.items() if key != "status"}
        if call.flag("dryRun") or call.query.get("dryRun") == "All":
            return obj
        created = self.store.create(call.resource, call.namespace, obj)
        if call.resource is PODS:
            self.kubelet.accept(created)
        if call.resource is NAMESPACES:
            self.store.create(
                SERVICE_ACCOUNTS, created["metadata"]["name"], {"metadata": {"name": "default"}}
            )
        return created

    def _update(self, call: Call, body: dict[str, Any]) -> dict[str, Any]:
        return self._replace(call, self._get(call), body)

    def _patch(self, call: Call, content_type: str, body: bytes) -> web.Response:
        current = self.store.find(call.resource, call.namespace, call.name)
        if current is None and content_type == APPLY_PATCH:
            start = {"metadata": {"name": call.name}}
            return _json(
                self._create(call, apply_patch(call.resource, start, content_type, body)), status=201
            )
        if current is None:
            raise not_found(call.resource, call.name)
        patched = apply_patch(call.resource, current, content_type, body)
        return _json(self._replace(call, current, patched))

    def _replace(self, call: Call, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        """Only the status through /status, everything else through the object itself."""
        if call.subresource == "status":
            kept = old["metadata"] | {"resourceVersion": new["metadata"].get("resourceVersion", "")}
            new = old | {"status": new.get("status", {}), "metadata": kept}
        elif call.resource.status:
            new = {k: v for k, v in new.items() if k != "status"} | (
                {"status": old["status"]} if "status" in old else {}
            )
        metadata = old["metadata"]
        fixed = {
            k: metadata[k]
            for k in ("namespace", "deletionTimestamp", "deletionGracePeriodSeconds", "generation")
            if k in metadata
        }
        new["metadata"] = new.get("metadata", {}) | fixed
        check_update(call.resource, old, new)
        return self.store.update(call.resource, new)

    def _delete(self, call: Call, options: dict[str, Any]) -> dict[str, Any]:
        return self._delete_one(call, self._get(call), options)

    def _delete_one(self, call: Call, obj: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        check_preconditions(call.resource, obj, options.get("preconditions") or {})
        propagation = options.get("propagationPolicy") or call.query.get("propagationPolicy") or "Background"
        uid = obj["metadata"]["uid"]
        if call.resource is PODS:
            grace_s = options.get("gracePeriodSeconds", call.number("gracePeriodSeconds"))
            self.kubelet.delete(obj, grace_s)
            return self.store.find(PODS, call.namespace, call.name) or obj
        if self.store.delete(call.resource, obj, propagation):
            return _success(call, uid)
        return self.store.find(call.resource, call.namespace, obj["metadata"]["name"]) or _success(call, uid)

    def _delete_all(self, call: Call, options: dict[str, Any]) -> dict[str, Any]:
        listed = self._list(call, {})
        for obj in self._matching(call):
            self._delete_one(call, obj, options)
        return listed

    async def _watch(self, request: web.Request, call: Call) -> web.StreamResponse:
        matches = _matcher(call)
        budget = self.faults.take(CutWatch, lambda f: f.concerns(request.method, request.path_qs))
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        sent = 0
        async for event in self._events(call, matches):
            if budget and sent >= budget.after_events:
                return cut_stream(request, response, budget)
            await response.write(json.dumps(event).encode() + b"\n")
            sent += event["type"] != "BOOKMARK"
        return response

    async def _events(self, call: Call, matches: Matcher) -> AsyncIterator[dict[str, Any]]:
        """Watch events from the resourceVersion that was asked for, until the watch's time is over."""
        version = int(call.query.get("resourceVersion") or 0)
        if version and version < self.store.oldest_watchable:
            message = f"too old resource version: {version} ({self.store.oldest_watchable})"
            yield {"type": "ERROR", "object": ApiError(410, message).as_status()}
            return
        position = self.store.position_after(version) if version else len(self.store.history)
        for obj in [] if version else self._matching(call):
            yield {"type": "ADDED", "object": copy.deepcopy(obj)}
        deadline = time.monotonic() + (call.number("timeoutSeconds") or _MAX_WATCH_S)
        while (left_s := deadline - time.monotonic()) > 0:
            changes = self.store.history[position:]
            position += len(changes)
            for event in _watch_events(changes, call, matches):
                yield event
            idle = position == len(self.store.history) and not await self._change_within(
                min(left_s, _BOOKMARK_S)
            )
            if idle and call.flag("allowWatchBookmarks"):
                yield self._bookmark(call)

    async def _change_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self.store.changed(), seconds)
        except TimeoutError:
            return False
        return True

    def _bookmark(self, call: Call) -> dict[str, Any]:
        metadata = {"resourceVersion": str(self.store.version)}
        identity = {"kind": call.resource.kind, "apiVersion": call.resource.api_version}
        return {"type": "BOOKMARK", "object": identity | {"metadata": metadata}}


def _watch_events(changes: list[Change], call: Call, matches: Matcher) -> Iterator[dict[str, Any]]:
    """An object that begins to match is ADDED, one that no longer does is DELETED."""
    for change in select_changes(changes, call.resource, call.namespace):
        matched_before = change.previous is not None and matches(change.previous)
        if change.verb == "DELETED":
            if matched_before:
                yield {"type": "DELETED", "object": change.obj}
        elif matches(change.obj):
            yield {"type": "MODIFIED" if matched_before else "ADDED", "object": change.obj}
        elif matched_before:
            yield {"type": "DELETED", "object": change.obj}


def _matcher(call: Call) -> Matcher:
    fields = call.query.get("fieldSelector", "")
    if call.name:
        fields = ",".join(filter(None, [fields, f"metadata.name={call.name}"]))
    return build_matcher(call.resource, call.query.get("labelSelector", ""), fields)


def _success(call: Call, uid: str = "") -> dict[str, Any]:
    details = {"name": call.name, "kind": call.resource.plural, "uid": uid}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def _json(document: dict[str, Any], status: int = 200) -> web.Response:
    return web.json_response(document, status=status)
