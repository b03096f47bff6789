"""A task that is told to end, and what becomes of its pod."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from airflow_provider_sft.api_patience import describe_api_error
from airflow_provider_sft.pod_access import PodAccess

_GLANCE_S = 0.5


class PodKill(PodAccess):
    """Ends the pod with its grace period to save, once, and never in the middle of something else."""

    _is_at_work = False
    _is_ended = False

    def on_kill(self) -> None:
        """The pod gets SIGTERM and its grace period to save; this task is no success, whatever comes of it.

        Called by a signal, in the middle of anything: a second call into the log or the client would wait for ever
        for the first one's lock. Who is at work ends the pod at the next turn.
        """
        self._killed = True
        if not self._is_at_work:
            self._end_what_runs()

    @contextmanager
    def _working(self) -> Iterator[None]:
        self._is_at_work = True
        try:
            yield
        finally:
            self._is_at_work = False
            if self._killed:
                self._end_what_runs()

    def _end_what_runs(self) -> None:
        """What a task does to its pod that is told to end, once."""
        if self._is_ended or self.pod is None:
            return
        self._is_ended = True
        try:
            super().on_kill()
        except Exception as error:  # noqa: BLE001  # the task's own end counts more
            self.log.warning("The pod cannot be deleted: %s", describe_api_error(error))
        else:
            self.log.info("The task is told to end; the pod %s.", self._fate)

    def _leaves_pod(self) -> bool:
        """Once it is told to end, the task ends its pod, and goes if that is kept."""
        if self._killed:
            self._end_what_runs()
        return self._killed and self._is_kept_on_kill

    @property
    def _fate(self) -> str:
        """Of the pod of a task that is told to end."""
        if self._is_kept_on_kill:
            return "is left running, as on_kill_action says"
        return f"got SIGTERM, has {self.termination_grace_period} s to save, and is deleted"

    @property
    def _is_kept_on_kill(self) -> bool:
        return bool(getattr(self, "on_kill_action", "") == "keep_pod")  # not in all provider versions

    def _rest(self, seconds: float) -> None:
        """Cut short when the task is told to end: what the pod says while it saves is there for a moment only."""
        was_killed, end_s = self._killed, time.monotonic() + seconds
        while self._killed == was_killed and (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _GLANCE_S))
