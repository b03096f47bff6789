"""What the worker and the triggerer both do with what they see of a pod. Neither client is known here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_sft.failures import TrainingFailure, clean_text
from airflow_provider_sft.metrics import Tags
from airflow_provider_sft.pod_log import LogWindow
from airflow_provider_sft.pod_outcome import Pod, container_state, has_ended, is_terminal
from airflow_provider_sft.pod_start import StartWatch, describe_waiting, waiting_topic
from airflow_provider_sft.progress_report import ProgressReport

# From the container's end to the pod's, where no side-car keeps it: the kubelet adds why it ended.
_SETTLING_S = 5.0
_LEAVING_POLL_S = 0.5


class PodWatch:
    """Tells the task's log what a pod waits for and how far it is, each thing once.

    :param store: the task state store, where there is one
    :param form: container and line to what a person reads, for lines that are no progress
    """

    def __init__(
        self,
        start: StartWatch,
        log: Any,
        store: Any | None = None,
        form: Callable[[str, str], str] = lambda _container, line: line,
        tags: Tags | None = None,
    ) -> None:
        self.last: Pod | None = None
        self.report = ProgressReport(log, store, lambda line: form(start.container, line), tags)
        self._container = start.container
        self._form = form
        self._start = start
        self._log = log
        self._windows: dict[str, LogWindow] = {}
        self._waiting_for = ""
        self._ended_at_s: float | None = None

    def see(self, pod: Pod) -> None:
        self.last = pod
        if self._ended_at_s is None and has_ended(pod, self._container):
            self._ended_at_s = time.monotonic()

    def is_pending(self, pod: Pod) -> bool:
        """It neither runs nor has it ended: its events say why."""
        return not has_ended(pod, self._container) and "running" not in container_state(pod, self._container)

    def is_over(self, pod: Pod) -> bool:
        """The trainer has ended and the pod's status says all it will."""
        if self._ended_at_s is None:
            return False
        return is_terminal(pod) or time.monotonic() - self._ended_at_s > _SETTLING_S

    def pause_s(self, poll_interval_s: float) -> float:
        """Short while a pod is being taken away: its last status exists for a moment only."""
        leaving = self.last and "deletionTimestamp" in self.last["metadata"]
        return min(poll_interval_s, _LEAVING_POLL_S) if leaving or self._ended_at_s else poll_interval_s

    def judge(self, pod: Pod, events: Sequence[Mapping[str, Any]]) -> TrainingFailure | None:
        """What makes further waiting for a pending pod useless."""
        topic = waiting_topic(pod, self._container)
        if topic != self._waiting_for:
            self._waiting_for = topic
            self._log.info(
                "Pod %s waits: %s", pod["metadata"]["name"], describe_waiting(pod, self._container)
            )
        return self._start.judge(pod, events, time.monotonic())

    def window(self, container: str) -> LogWindow:
        return self._windows.setdefault(container, LogWindow())

    def take_log(self, container: str, stamped_lines: Iterable[str]) -> Iterator[str]:
        """Show each new line as it comes, and pass it on."""
        for line in self.window(container).take(stamped_lines):
            if container == self._container:
                self.report.take(line)
            else:
                self._log.info("%s", self._form(container, clean_text(line)))
            yield line
