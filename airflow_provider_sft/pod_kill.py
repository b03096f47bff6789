"""A task that is told to end, and what becomes of its pod."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from airflow_provider_sft.pod_access import PodAccess
from airflow_provider_sft.pod_outcome import Pod, container_state

_GLANCE_S = 0.5
# Beyond the grace period: a lost node keeps its pod for as long as nobody takes it away.
_LEAVING_MARGIN_S = 120.0


class PodKill(PodAccess):
    """Ends the pod with its grace period to save, once, and never in the middle of something else."""

    _is_at_work = False
    _is_ended = False
    _leaves_at_s = math.inf
    _last_seen: Pod | None = None

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
        self._leaves_at_s = time.monotonic() + (self.termination_grace_period or 0) + _LEAVING_MARGIN_S
        if not self._is_kept_on_kill:
            self._delete(grace_s=self.termination_grace_period)
        self.log.info("The task is told to end; the pod %s.", self._fate)

    def _leaves_pod(self) -> bool:
        """Once it is told to end, the task ends its pod, and goes if that is kept, or never goes."""
        if self._killed:
            self._end_what_runs()
        return self._killed and (self._is_kept_on_kill or time.monotonic() > self._leaves_at_s)

    @property
    def _fate(self) -> str:
        """Of the pod of a task that is told to end."""
        if self.pod is None:
            return "was not created"
        if self._is_kept_on_kill:
            return "is left running, as on_kill_action says"
        if self._is_taken_over:
            return "is left to the later try that follows it"
        if not self._has_started:
            return "had not started, and is deleted"
        return f"got SIGTERM, has {self.termination_grace_period} s to save, and is deleted"

    @property
    def _has_started(self) -> bool:
        """As far as this worker has seen; what it has not looked at may run."""
        return self._last_seen is None or bool(
            {"running", "terminated"} & container_state(self._last_seen, self.base_container_name).keys()
        )

    @property
    def _is_kept_on_kill(self) -> bool:
        return bool(getattr(self, "on_kill_action", "") == "keep_pod")  # not in all provider versions

    def _rest(self, seconds: float) -> None:
        """Short once the task is told to end: what the pod says while it saves is there for a moment only."""
        end_s = time.monotonic() + (min(seconds, _GLANCE_S) if self._killed else seconds)
        was_killed = self._killed
        while self._killed == was_killed and (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _GLANCE_S))
