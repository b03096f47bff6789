"""The HTTP side: authentication, recording, faults of the wire, discovery, and `/_test` for tests in other processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import asdict
from typing import Any

from aiohttp import web

from tests.kube.api import Api
from tests.kube.errors import ApiError
from tests.kube.faults import CutConnection, Denied, Faults, HttpError, SlowResponse, decode_fault
from tests.kube.kubelet import Kubelet
from tests.kube.requests import Call, Request, parse_call
from tests.kube.resources import Registry
from tests.kube.store import Store

USER = "system:serviceaccount:default:airflow"
_VERSION = {
    "major": "1",
    "minor": "34",
    "gitVersion": "v1.34.2",
    "gitCommit": "0" * 40,
    "gitTreeState": "clean",
    "buildDate": "2025-11-11T19:12:03Z",
    "goVersion": "go1.24.9",
    "compiler": "gc",
    "platform": "linux/amd64",
}


class ClusterApp:
    """One cluster as an aiohttp application.

    :param tokens: the bearer tokens that are accepted; a test takes one away to let it expire
    """

    def __init__(self, store: Store, kubelet: Kubelet, faults: Faults, tokens: set[str]) -> None:
        self.registry: Registry = store.registry
        self.faults, self.kubelet, self.tokens = faults, kubelet, tokens
        self.api = Api(store, kubelet, faults)
        self.requests: list[Request] = []

    def build(self) -> web.Application:
        app = web.Application(client_max_size=3 * 1024 * 1024)
        app.router.add_get("/_test/record", self._show_record)
        app.router.add_post("/_test/faults", self._add_fault)
        app.router.add_delete("/_test/faults", self._clear_faults)
        app.router.add_route("*", "/{path:.*}", self._serve)
        return app

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        call = parse_call(self.registry, request)
        record = Request(
            request.method, request.path, dict(request.query), call, request.headers.get("User-Agent", "")
        )
        self.requests.append(record)
        with contextlib.suppress(ValueError):
            record.body = json.loads(await request.read() or b"null")
        cut = self.faults.take(CutConnection, lambda f: f.concerns(request.method, request.path_qs))
        if cut and not cut.executed:
            return _abort(request)
        try:
            response = await self._answer(request, call)
        except ApiError as error:
            response = web.json_response(error.as_status(), status=error.code, headers=error.headers)
        if cut:
            return await _cut(request, response, cut.after_bytes)
        record.status = response.status
        return response

    async def _answer(self, request: web.Request, call: Call | None) -> web.StreamResponse:
        self._authenticate(request)
        if error := self.faults.take(HttpError, lambda f: f.concerns(request.method, request.path_qs)):
            headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
            raise ApiError(error.status, error.message, headers=headers)
        if slow := self.faults.take(SlowResponse, lambda f: f.concerns(request.method, request.path_qs)):
            await asyncio.sleep(slow.seconds)
        if call is None:
            return self._discover(request.path)
        self._authorize(call)
        return await self.api.answer(request, call)

    def _authenticate(self, request: web.Request) -> None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if request.path not in ("/healthz", "/livez", "/readyz", "/version") and token not in self.tokens:
            raise ApiError(401)

    def _authorize(self, call: Call) -> None:
        if self.faults.take(Denied, lambda f: f.concerns(call.verb, call.qualified)):
            plural = call.resource.plural + (f"/{call.subresource}" if call.subresource else "")
            where = f' in the namespace "{call.namespace}"' if call.namespace else " at the cluster scope"
            named = f' "{call.name}"' if call.name else ""
            what = f'cannot {call.verb} resource "{plural}" in API group "{call.resource.group}"{where}'
            raise ApiError(403, f'{call.resource.qualified}{named} is forbidden: User "{USER}" {what}')

    def _discover(self, path: str) -> web.Response:
        parts = [part for part in path.split("/") if part]
        if parts in (["healthz"], ["livez"], ["readyz"]):
            return web.Response(text="ok")
        document = _VERSION if parts == ["version"] else self._discovery_document(parts)
        if document is None:  # what no API server serves is answered in plain text
            return web.Response(status=404, text="404 page not found\n")
        return web.json_response(document)

    def _discovery_document(self, parts: list[str]) -> dict[str, Any] | None:
        match parts:
            case ["api"]:
                return self.registry.core_versions()
            case ["apis"]:
                return self.registry.groups()
            case ["api", version]:
                return self.registry.resources("", version)
            case ["apis", group]:
                return self.registry.group(group)
            case ["apis", group, version]:
                return self.registry.resources(group, version)
        return None

    async def _show_record(self, request: web.Request) -> web.Response:
        requests = [
            {"method": r.method, "path": r.path, "status": r.status, "verb": r.verb, "resource": r.resource}
            for r in self.requests
        ]
        starts = [asdict(start) for start in self.kubelet.starts]
        return web.json_response({"requests": requests, "pods": self.kubelet.created, "starts": starts})

    async def _add_fault(self, request: web.Request) -> web.Response:
        try:
            self.faults.add(decode_fault(await request.json()))
        except (TypeError, ValueError) as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        return web.json_response({})

    async def _clear_faults(self, request: web.Request) -> web.Response:
        self.faults.clear()
        return web.json_response({})


def _abort(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _cut(
    request: web.Request, response: web.StreamResponse, after_bytes: int | None
) -> web.StreamResponse:
    """Send only the beginning of the answer, or nothing of it."""
    if after_bytes is None or not isinstance(response, web.Response) or response.prepared:
        return _abort(request)
    body: Any = response.body or b""
    partial = web.StreamResponse(status=response.status, headers={"Content-Type": "application/json"})
    partial.content_length = len(body)
    await partial.prepare(request)
    await partial.write(bytes(body[:after_bytes]))
    await asyncio.sleep(0.01)  # let the bytes leave before the reset overtakes them
    _abort(request)
    return partial
