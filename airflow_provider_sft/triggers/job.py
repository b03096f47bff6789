"""Watches the job of a deferred training: the job, Kueue's Workload of it, its pods and their logs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from airflow.triggers.base import BaseTrigger

from airflow_provider_sft.api_patience import api_status
from airflow_provider_sft.api_stream import fetch
from airflow_provider_sft.engines.engine import Manifest
from airflow_provider_sft.engines.kueue import QUEUE_GROUP, queue_of
from airflow_provider_sft.engines.outcome import failed_exit_code, failure_of_job, first_node
from airflow_provider_sft.engines.reading import read_job
from airflow_provider_sft.engines.registry import find_engine
from airflow_provider_sft.engines.state import JobState, Stage
from airflow_provider_sft.engines.summary import summarize_job
from airflow_provider_sft.engines.workload import is_stopped
from airflow_provider_sft.failures import LaunchFailure, TrainingFailure, clean_text
from airflow_provider_sft.job_callbacks import NodeCallbacks
from airflow_provider_sft.job_clock import Note, NoteKeeper, read_note
from airflow_provider_sft.job_feed import Wire
from airflow_provider_sft.job_logs import JobLogs
from airflow_provider_sft.job_view import JobView
from airflow_provider_sft.job_watch import JobWatch, Limits
from airflow_provider_sft.pod_outcome import has_ended, read_result, trim_pod
from airflow_provider_sft.progress_report import ProgressReport
from airflow_provider_sft.triggers.kubernetes import SFTTrainerTrigger
from airflow_provider_sft.try_claim import Deletion

_NOT_FOUND = 404
# A node that failed for good: its engine may be about to say so itself, and then the job can stay for reading.
_SETTLING_S = 10.0
_GATHER_S = 0.05  # changes come in bunches


class SFTJobTrigger(SFTTrainerTrigger):
    """Follows one job, told by its uid, to its end; its states, progress and log go to the task's log.

    The event's `status`: `ended` (well, badly, or it was given up: `failure` and `message` tell), `gone` (the job does
    not exist any more), `timeout` (of the task), `error` (the API server is away: the worker decides).

    :param limits: as :class:`Limits`
    :param log_all_nodes: not the first node's log alone
    """

    def __init__(
        self, *, engine: str, limits: Mapping[str, Any], log_all_nodes: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.engine, self.limits, self.log_all_nodes = engine, dict(limits), log_all_nodes
        self._engine = find_engine(engine)
        self._decision = JobWatch(self._engine, Limits(**self.limits), self.log)
        self._keeper = NoteKeeper(self._path, self.log)
        self._callbacks: NodeCallbacks | None = None
        self._form: Callable[[str, str], str] = lambda container, line: f"[{container}] {line}"
        self._failed_at_s: float | None = None
        self._changed = asyncio.Event()
        self._view: JobView
        self._logs: JobLogs

    def serialize(self) -> tuple[str, dict[str, Any]]:
        path, kwargs = super().serialize()
        own = {"engine": self.engine, "limits": self.limits, "log_all_nodes": self.log_all_nodes}
        return path, {**kwargs, **own}

    def report_to(
        self, report: ProgressReport, form: Callable[[str, str], str], callbacks: NodeCallbacks | None
    ) -> None:
        """For a worker that follows the job itself: where progress goes, and how a line of another node looks."""
        self._watch.report, self._form, self._callbacks = report, form, callbacks

    async def on_kill(self) -> None:
        """A person ended the deferred task: the nodes get SIGTERM and save."""
        if self._fired_event or getattr(self, "on_kill_action", "") == "keep_pod":  # not in all versions
            return
        self.log.info("Deleting %s %s.", self._engine.kind, self.pod_name)
        await Deletion(self.pod_uid, self.claim, self.log, foreground=True).run_async(self.hook, self._path)

    @property
    def _path(self) -> str:
        return (
            f"/apis/{self._engine.api_version}/namespaces/{self.pod_namespace}"
            f"/{self._engine.plural}/{self.pod_name}"
        )

    async def cleanup(self) -> None:
        """Before Airflow 3.3 nobody calls `on_kill`: a task that is deferred no more was ended by a person."""
        if hasattr(BaseTrigger, "on_kill") or self._fired_event:
            return
        with contextlib.suppress(Exception):
            if await self.safe_to_cancel():
                await self.on_kill()

    async def _follow(self) -> dict[str, Any]:
        job = await self._insist(lambda: fetch(self.hook, self._path))
        if job is None or job["metadata"]["uid"] != self.pod_uid:
            return {"status": "gone"}
        note = read_note(job)
        self._decision.clock = note.clock
        wire = Wire(lambda: self.hook, self._patience.take_success, self._pause_after, self.log)
        self._view = JobView(
            self._engine,
            job,
            wire=wire,
            on_change=self._take_change,
            poll_interval_s=self.poll_interval,
            workloads_version=await self._workloads_version(job),
        )
        self._logs = JobLogs(
            self._engine,
            wire,
            all_nodes=self.log_all_nodes,
            report=lambda: self._watch.report,
            take_other=self._tell_other,
            hear=self._callbacks.take_line if self._callbacks else None,
            places=note.logs,
        )
        feeds = [asyncio.create_task(feed.run()) for feed in self._view.feeds]
        try:
            return await self._watch_to_the_end(feeds)
        finally:
            await self._stop(feeds)

    async def _stop(self, feeds: list[asyncio.Task[None]]) -> None:
        """Another watcher goes on from here."""
        for task in feeds:
            task.cancel()
        await asyncio.gather(*feeds, return_exceptions=True)
        await self._logs.stop()
        if self._view.job is not None:
            await self._keeper.save(self.hook, self._note)

    async def _watch_to_the_end(self, feeds: list[asyncio.Task[None]]) -> dict[str, Any]:
        while not self._is_overdue():
            for task in feeds:
                if task.done() and (error := task.exception()):
                    raise error
            if self._view.is_settled and (event := await self._look()):
                return event
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self.poll_interval)
            await asyncio.sleep(_GATHER_S)
            self._changed.clear()
        return {"status": "timeout"}

    def _take_change(self) -> None:
        """A log is followed at once: a node may be gone a moment after it began."""
        self._changed.set()
        if self._callbacks:
            self._callbacks.see(self._view.pods)
        if self.get_logs:
            self._logs.follow(self._view.pods)

    async def _look(self) -> dict[str, Any] | None:
        """The event that the state of now makes, None while the job goes on."""
        view = self._view
        if view.refusal:
            return _given_up(LaunchFailure(f"Airflow may not watch {self._engine.plural}: {view.refusal}."))
        job, state = view.job, view.classify()
        full = await self._find_full_quota(state, job)
        state = replace(state, reason=f"the namespace's quota has no room: {full}") if full else state
        self._decision.see(self.pod_name, state, job, view.pods, waits_for_quota=bool(full))
        if job is None:
            return {"status": "gone"}
        if state.stage in (Stage.SUCCEEDED, Stage.FAILED):
            return await self._end(state, job) if self._is_final(job) else None
        if failure := await self._find_obstacle(state, job):
            return _given_up(failure)
        await self._keeper.save_at_times(self.hook, self._note)
        return None

    async def _find_full_quota(self, state: JobState, job: Manifest | None) -> str:
        """Why the engine could not make a pod of this job, while one is missing."""
        is_starting = state.stage in (Stage.STARTING, Stage.RESTARTING)
        if job is None or not is_starting or len(self._view.pods) >= read_job(job).num_nodes:
            return ""
        refusals = [
            event
            for event in await self._read_events(reason="FailedCreate")
            if event["involvedObject"]["name"].startswith(self.pod_name)
            and "exceeded quota" in event.get("message", "")
        ]
        newest = max(refusals, key=lambda event: str(event.get("lastTimestamp")), default={"message": ""})
        return str(newest["message"]).partition("exceeded quota: ")[2]

    async def _find_obstacle(self, state: JobState, job: Manifest) -> TrainingFailure | None:
        """What makes further waiting useless."""
        view = self._view
        for pod in view.pending_pods if state.stage in (Stage.STARTING, Stage.RESTARTING) else []:
            events = await self._read_events(pod["metadata"]["name"])
            if failure := self._decision.judge_start(pod, events):
                return failure
        return self._decision.judge(state, queue=queue_of(job), has_workload=view.has_workload)

    def _is_final(self, job: Manifest) -> bool:
        reading = read_job(job)
        if reading.succeeded or reading.failed or is_stopped(self._view.workload):
            return True
        if failed_exit_code(job, self._view.all_pods) not in self._engine.ends_at:
            return True
        if self._failed_at_s is None:
            self._failed_at_s = time.monotonic()
        return time.monotonic() - self._failed_at_s >= _SETTLING_S

    async def _end(self, state: JobState, job: Manifest) -> dict[str, Any]:
        view, reading = self._view, read_job(job)
        with contextlib.suppress(Exception):  # what was seen before serves as well
            await view.refresh_pods()
        await self._logs.finish()
        pods, progress = view.all_pods, self._watch.report.last
        failure = failure_of_job(state, job, view.workload, pods, progress)
        first = first_node(job, pods)
        result = failure.result if failure else first and read_result(first, self._engine.container)
        return {
            **_given_up(failure),
            "finished": bool(reading.succeeded or reading.failed),
            "result": result,
            "exit_code": failed_exit_code(job, pods),
            "pod": trim_pod(first) if first and has_ended(first, self._engine.container) else None,
            "summary": summarize_job(job),
            "pods_refusal": view.pods_refusal,
        }

    async def _workloads_version(self, job: Manifest) -> str:
        """Of Kueue's API, as the cluster prefers it; empty without Kueue, or where nobody queues."""
        if not queue_of(job):
            return ""
        group = await self._insist(lambda: fetch(self.hook, f"/apis/{QUEUE_GROUP}"))
        return str(group["preferredVersion"]["version"]) if group else ""

    async def _insist(self, read: Callable[[], Any]) -> dict[str, Any] | None:
        """`read()` until it gives an answer, which may be that there is nothing."""
        while True:
            try:
                answer: dict[str, Any] = await read()
            except Exception as error:  # noqa: BLE001  # told apart by its status
                if api_status(error) == _NOT_FOUND:
                    return None
                await self._pause_after(error)
            else:
                self._patience.take_success()
                return answer

    @property
    def _note(self) -> Note:
        return Note(self._decision.clock, self._logs.places)

    def _tell_other(self, rank: int, line: str) -> None:
        self.log.info("%s", self._form(f"node {rank}", clean_text(line)))


def _given_up(failure: TrainingFailure | None) -> dict[str, Any]:
    """The event of an end; a job that is not finished by itself is deleted."""
    told = {"failure": type(failure).__name__, "message": str(failure)} if failure else {}
    seen = {"result": None, "exit_code": None, "pod": None}
    return {"status": "ended", "finished": False, "failure": "", **seen, **told}
