"""GET pods/NAME/log: follow, tail, since and timestamps, and the sentences of a kubelet that has nothing to show."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from aiohttp import web

from tests.kube.container import Container, ContainerLog
from tests.kube.errors import ApiError
from tests.kube.faults import CutLog, CutStream, Faults
from tests.kube.kubelet import Kubelet
from tests.kube.requests import Call


async def send_log(
    request: web.Request, call: Call, kubelet: Kubelet, faults: Faults, pod: dict[str, Any]
) -> web.StreamResponse:
    """Stream the log of one container. :raises ApiError: when there is none to be had"""
    container = _choose(call, kubelet, pod)
    log = container.previous_log if call.flag("previous") else container.log
    if log is None:
        raise ApiError(
            400, f'previous terminated container "{container.name}" in pod "{call.name}" not found'
        )
    cut = faults.take(CutLog, lambda f: f.concerns(request.method, request.path_qs))
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    position, sent = _first_line(call, log), 0
    while True:
        written = log.lines[position:]
        position += len(written)
        for line in _render(written, zone=kubelet.log_zone if call.flag("timestamps") else None):
            if cut and sent >= cut.after_lines:
                return cut_stream(request, response, cut)
            await response.write(line)
            sent += 1
        if position < len(log.lines):
            continue
        if log.closed or not call.flag("follow"):
            return response
        await log.changed()


def cut_stream(request: web.Request, response: web.StreamResponse, fault: CutStream) -> web.StreamResponse:
    if fault.abrupt and request.transport:
        request.transport.abort()
    return response


def _choose(call: Call, kubelet: Kubelet, pod: dict[str, Any]) -> Container:
    spec, name = pod["spec"], call.query.get("container", "")
    names = [container["name"] for container in spec["containers"]]
    inits = [container["name"] for container in spec.get("initContainers") or []]
    if not name and len(names) > 1:
        raise ApiError(
            400, f"a container name must be specified for pod {call.name}, choose one of: [{' '.join(names)}]"
        )
    name = name or names[0]
    if name not in names + inits:
        raise ApiError(400, f"container {name} is not valid for pod {call.name}")
    if not spec.get("nodeName"):
        raise ApiError(400, f"pod {call.name} does not have a host assigned")
    if kubelet.is_silent(pod):
        url = f"https://node-1:10250/containerLogs/{call.namespace}/{call.name}/{name}"
        raise ApiError(500, f'Get "{url}": dial tcp: connect: no route to host')
    container = kubelet.find_container(pod, name)
    if container is None or ("waiting" in container.state and not container.restart_count):
        reason = container.state["waiting"]["reason"] if container else "ContainerCreating"
        raise ApiError(400, f'container "{name}" in pod "{call.name}" is waiting to start: {reason}')
    return container


def _first_line(call: Call, log: ContainerLog) -> int:
    """Where sinceSeconds, sinceTime and tailLines let the log begin."""
    first = 0
    if (seconds := call.number("sinceSeconds")) is not None:
        first = _index_at(log, time.time() - seconds)
    if moment := call.query.get("sinceTime"):
        first = _index_at(log, datetime.fromisoformat(moment).timestamp())
    if (tail := call.number("tailLines")) is not None:
        first = max(first, len(log.lines) - tail)
    return first


def _index_at(log: ContainerLog, moment: float) -> int:
    return next((i for i, (at, _) in enumerate(log.lines) if at >= moment), len(log.lines))


def _render(lines: list[tuple[float, bytes]], *, zone: timezone | None) -> Iterator[bytes]:
    """:param zone: of the node's container runtime, whose stamps carry its offset; None for no stamps"""
    for at, line in lines:
        if zone is None:
            yield line
        else:
            moment = datetime.fromtimestamp(at, zone)
            offset = moment.isoformat()[-6:].replace("+00:00", "Z")
            yield f"{moment:%Y-%m-%dT%H:%M:%S.%f}000{offset} ".encode() + line
