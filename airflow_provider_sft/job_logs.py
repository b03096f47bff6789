"""The logs of a job's nodes, of all its attempts, into one task's log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import partial

from airflow_provider_sft.engines.engine import Engine
from airflow_provider_sft.engines.nodes import rank_of
from airflow_provider_sft.job_feed import Wire
from airflow_provider_sft.job_log import NodeLog
from airflow_provider_sft.pod_outcome import Pod, has_begun, has_ended
from airflow_provider_sft.progress_report import ProgressReport

_LAST_LINES_S = 10.0


class JobLogs:
    """
    :param all_nodes: not the first one's alone
    :param report: takes the first node's lines
    :param take_other: takes a line of another node
    :param hear: takes each line too, after its pod and its time
    :param places: by a pod's uid, how far an earlier watcher read
    """

    def __init__(
        self,
        engine: Engine,
        wire: Wire,
        *,
        all_nodes: bool,
        report: Callable[[], ProgressReport],
        take_other: Callable[[int, str], None],
        hear: Callable[[Pod, str, str], None] | None,
        places: Mapping[str, str],
    ) -> None:
        self._engine, self._wire, self._all_nodes = engine, wire, all_nodes
        self._report, self._take_other, self._hear, self._places = report, take_other, hear, places
        self._pods: dict[str, Pod] = {}
        self._logs: dict[str, NodeLog] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def places(self) -> dict[str, str]:
        """How far each is read, to go on from there."""
        return {uid: log.read_until for uid, log in self._logs.items() if log.read_until}

    def follow(self, pods: list[Pod]) -> None:
        """Begin with those whose container runs or has ended."""
        for pod in pods:
            uid = pod["metadata"]["uid"]
            self._pods[uid] = pod
            if uid not in self._tasks and self._is_wanted(pod) and has_begun(pod, self._engine.container):
                has_ended_now = partial(self._has_ended, uid)
                self._tasks[uid] = asyncio.create_task(self._start(pod).follow(has_ended_now))
        alive = {pod["metadata"]["uid"] for pod in pods}
        for uid in self._pods.keys() - alive:  # gone: its log ends where it is
            self._pods[uid] = {**self._pods[uid], "status": {"phase": "Failed"}}

    async def finish(self) -> None:
        """Read to the last lines of what has ended."""
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=_LAST_LINES_S)

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _start(self, pod: Pod) -> NodeLog:
        metadata, rank = pod["metadata"], rank_of(pod)
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/log"

        def take(line: str) -> None:
            if rank == 0:
                self._report().take(line)
            else:
                self._take_other(rank, line)
            if self._hear:
                self._hear(pod, log.read_until, line)

        read_until = self._places.get(metadata["uid"], "")
        log = NodeLog(path, self._engine.container, self._wire, take, read_until=read_until)
        self._logs[metadata["uid"]] = log
        return log

    def _is_wanted(self, pod: Pod) -> bool:
        return self._all_nodes or rank_of(pod) == 0

    def _has_ended(self, uid: str) -> bool:
        return has_ended(self._pods[uid], self._engine.container)
