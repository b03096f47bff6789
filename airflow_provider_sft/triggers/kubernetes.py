"""Watches the pod of a deferred training."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.providers.common.compat.sdk import AirflowException
from airflow.triggers.base import TriggerEvent

from airflow_provider_sft.api_patience import (
    ApiAwayError,
    Patience,
    api_status,
    describe_api_error,
    is_passing,
)
from airflow_provider_sft.api_stream import fetch, stream_lines
from airflow_provider_sft.log_bookmark import Bookmark, read_bookmark
from airflow_provider_sft.pod_outcome import Pod, find_disruption, trim_pod
from airflow_provider_sft.pod_start import StartWatch
from airflow_provider_sft.pod_watch import PodWatch
from airflow_provider_sft.try_claim import Deletion

_FORBIDDEN, _NOT_FOUND, _UNAUTHORIZED = 403, 404, 401
# The triggerer has the credentials of the moment of deferral; the worker reads them anew.
_UNAUTHORIZED_PATIENCE_S = 15.0
_LOG_TIMEOUT_S = 60


class SFTTrainerTrigger(KubernetesPodTrigger):
    """Follows one pod, told by its uid, to its end; progress and waiting go to the task's log.

    The event's `status`: `ended` (the container has, well or badly), `gone` (the pod does not exist any more),
    `failed` (it cannot start), `timeout` (of the task), `error` (the API server is away: the worker decides).

    :param pod_uid: another pod of the same name is not ours
    :param claim: of the try that deferred; what a later try has taken over is left alone
    """

    def __init__(self, *, pod_uid: str, claim: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pod_uid, self.claim = pod_uid, claim
        self._events_allowed = self._log_allowed = True
        self._patience = Patience(self.log)
        start = StartWatch(self.base_container_name, self.schedule_timeout, self.startup_timeout)
        self._watch = PodWatch(start, self.log)
        self._window = self._watch.window(self.base_container_name)
        self._bookmark = Bookmark(self.pod_name, self.pod_namespace, self.log)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        _, kwargs = super().serialize()
        return f"{type(self).__module__}.{type(self).__qualname__}", {
            **kwargs,
            "pod_uid": self.pod_uid,
            "claim": self.claim,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        started_s = time.monotonic()
        if ti := self.task_instance:
            self._watch.report.tags = {"dag_id": ti.dag_id, "task_id": ti.task_id}
        try:
            event = await self._follow()
        except ApiAwayError as error:
            event = {"status": "error", "message": str(error)}
        except AirflowException as error:  # the hook's, before it asks the API anything
            event = {"status": "error", "is_lasting": True, "message": _describe_connection(error)}
        except Exception as error:
            self.log.exception("The triggerer lost pod %s", self.pod_name)
            event = {"status": "error", "message": describe_api_error(error)}
        self._fired_event = True
        yield TriggerEvent(  # type: ignore[no-untyped-call]
            {
                "name": self.pod_name,
                "namespace": self.pod_namespace,
                "uid": self.pod_uid,
                "claim": self.claim,
                "progress": self._watch.report.last,
                "log_read_until": self._window.read_until,
                "watched_s": time.monotonic() - started_s,
                **self.trigger_kwargs,
                **event,
            }
        )

    async def on_kill(self) -> None:
        """A person ended the deferred task: the pod gets SIGTERM and saves."""
        if self._fired_event or getattr(self, "on_kill_action", "") == "keep_pod":  # not in all versions
            return
        self.log.info("Deleting %s.", self._path.rpartition("/")[2])
        await Deletion(self.pod_uid, self.claim, self.log, self.termination_grace_period).run_async(
            self.hook, self._path
        )

    @property
    def _path(self) -> str:
        return f"/api/v1/namespaces/{self.pod_namespace}/pods/{self.pod_name}"

    async def _follow(self) -> dict[str, Any]:
        try:
            return await self._follow_to_the_end()
        except asyncio.CancelledError:  # the triggerer stops: another one goes on from here
            await self._bookmark.save(self.hook, self._window.read_until)
            raise

    async def _follow_to_the_end(self) -> dict[str, Any]:
        while not self._is_overdue():
            pod = await self._read()
            if pod is None:
                why = find_disruption(await self._read_events())
                return {
                    "status": "gone",
                    "pod": self._watch.last and trim_pod(self._watch.last),
                    "why_gone": why,
                }
            if event := await self._look_at(pod):
                return event
            await asyncio.sleep(self._watch.pause_s(self.poll_interval))
        return {"status": "timeout"}

    async def _look_at(self, pod: Pod) -> dict[str, Any] | None:
        """The event that this pod makes, None while it goes on."""
        if self._watch.last is None:
            self._window.read_until = read_bookmark(pod)
        self._watch.see(pod)
        if self._watch.is_pending(pod):
            failure = self._watch.judge(pod, await self._read_events())
            if failure is None:
                return None
            return {"status": "failed", "failure": type(failure).__name__, "message": str(failure)}
        log_complete = await self._read_log()
        if self._watch.is_over(pod):
            return {"status": "ended", "pod": trim_pod(pod), "log_complete": log_complete}
        await self._bookmark.save_at_times(self.hook, self._window.read_until)
        return None

    def _is_overdue(self) -> bool:
        deadline = self.trigger_kwargs.get("_execution_deadline")
        return deadline is not None and time.time() >= deadline

    async def _read(self) -> Pod | None:
        while True:
            try:
                pod: Pod = await fetch(self.hook, self._path)
            except Exception as error:  # noqa: BLE001  # told apart by its status
                if api_status(error) == _NOT_FOUND:
                    return None
                await self._pause_after(error)
            else:
                self._patience.take_success()
                return pod if pod["metadata"].get("uid") == self.pod_uid else None

    async def _pause_after(self, error: Exception) -> None:
        if not is_passing(error):
            raise error
        pause_s = self._patience.take_failure(error)
        if api_status(error) == _UNAUTHORIZED:
            self.__dict__.pop("hook", None)  # the next one reads the credentials again
            if self._patience.failing_s > _UNAUTHORIZED_PATIENCE_S:
                raise ApiAwayError(f"The Kubernetes API refuses the credentials: {describe_api_error(error)}")
        await asyncio.sleep(pause_s)

    async def _read_events(self, pod_name: str = "", *, reason: str = "") -> list[dict[str, Any]]:
        """:param reason: of the events of any object; else those of one pod"""
        if not self._events_allowed:
            return []
        try:
            of_pod = f"involvedObject.name={pod_name or self.pod_name}"
            query = {"fieldSelector": f"reason={reason}" if reason else of_pod}
            events = await fetch(self.hook, f"/api/v1/namespaces/{self.pod_namespace}/events", query)
        except Exception as error:  # noqa: BLE001  # events explain; nothing depends on them
            self._events_allowed = api_status(error) != _FORBIDDEN
            self.log.warning("The pod's events cannot be read: %s", describe_api_error(error))
            return []
        found: list[dict[str, Any]] = events["items"]
        return found

    async def _read_log(self) -> bool:
        """False where the log could not be read: the next read brings what is missing."""
        if not (self.get_logs and self._log_allowed):
            return True
        since_seconds = self._window.begin_read()
        try:
            lines = await self._fetch_log(since_seconds)
        except Exception as error:  # noqa: BLE001  # a lost log is no lost training
            self._log_allowed = api_status(error) != _FORBIDDEN
            self.log.warning("The pod's log cannot be read now: %s", describe_api_error(error))
            return False
        await asyncio.to_thread(list, self._watch.take_log(self.base_container_name, lines))
        return True

    async def _fetch_log(self, since_seconds: int | None) -> list[str]:
        """The hook's own `read_logs` takes the text of a refusal for the pod's log."""
        query = {"container": self.base_container_name, "timestamps": "true"}
        if since_seconds is not None:
            query["sinceSeconds"] = str(since_seconds)
        lines = stream_lines(self.hook, f"{self._path}/log", query, idle_timeout_s=_LOG_TIMEOUT_S)
        return [line async for line in lines]


def _describe_connection(error: Exception) -> str:
    return (
        f"The triggerer cannot use the Kubernetes connection: {error} Where KUBECONFIG is set, the connection must not "
        "name another configuration (kube_config_path). Keep one of them."
    )
