"""Kubernetes' API as JSON over the triggerer's connection: what is read once, what streams, and how a failure looks.

`AsyncKubernetesHook` knows pods alone; a job of any kind, a Workload and a followed log are paths.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

_READ_TIMEOUT_S = 60.0
_CONNECT_TIMEOUT_S = 15.0
_MERGE_PATCH = "application/merge-patch+json"
_OK = range(200, 300)


async def fetch(hook: Any, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
    """:raises ApiException: with the server's own message"""
    async with hook.get_conn() as connection:
        response = await _call(connection, "GET", path, query, timeout_s=_READ_TIMEOUT_S)
        async with response:
            document: dict[str, Any] = json.loads(await response.read())
        return document


async def send(hook: Any, method: str, path: str, body: Mapping[str, Any]) -> None:
    """PATCH (merge) or DELETE."""
    async with hook.get_conn() as connection:
        response = await _call(connection, method, path, None, body=body, timeout_s=_READ_TIMEOUT_S)
        await response.read()


async def stream_lines(
    hook: Any, path: str, query: Mapping[str, str], *, idle_timeout_s: float
) -> AsyncIterator[str]:
    """Lines of any length, until the server ends the answer."""
    rest = b""
    async with hook.get_conn() as connection:
        response = await _call(connection, "GET", path, query, timeout_s=idle_timeout_s)
        try:
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace")
        finally:
            response.close()
    if rest:
        yield rest.decode(errors="replace")


async def _call(  # one request, spelled out
    connection: Any,
    method: str,
    path: str,
    query: Mapping[str, str] | None,
    *,
    timeout_s: float,
    body: Mapping[str, Any] | None = None,
) -> Any:
    from kubernetes_asyncio.client import ApiException

    headers = {"Accept": "application/json, */*"}
    if method == "PATCH":
        headers["Content-Type"] = _MERGE_PATCH
    response = await connection.call_api(
        path,
        method,
        query_params=list((query or {}).items()),
        header_params=headers,
        body=body,
        auth_settings=["BearerToken"],
        _preload_content=False,
        _request_timeout=(_CONNECT_TIMEOUT_S, timeout_s),
    )
    if response.status not in _OK:
        error = ApiException(status=response.status, reason=response.reason)
        async with response:
            error.body = await response.text()
        raise error
    return response
