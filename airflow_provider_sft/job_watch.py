"""What a watcher makes of a job's state: tells it once, counts the time, and knows when waiting is useless. No client."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_sft.contract.progress import describe_duration
from airflow_provider_sft.engines.engine import Engine, Manifest
from airflow_provider_sft.engines.kueue import queue_of
from airflow_provider_sft.engines.state import JobState, Stage
from airflow_provider_sft.failures import (
    InterruptedFailure,
    LaunchFailure,
    TrainingFailure,
    TransientFailure,
)
from airflow_provider_sft.job_clock import Clock, Phase
from airflow_provider_sft.pod_outcome import Pod
from airflow_provider_sft.pod_start import StartWatch, is_scheduled

_PHASES: Mapping[Stage, Phase] = {
    Stage.QUEUED: "queue",
    Stage.REQUEUED: "queue",
    Stage.ADMITTED: "start",
    Stage.STARTING: "start",
    Stage.RESTARTING: "start",
    Stage.RUNNING: "run",
}


@dataclass(frozen=True)
class Limits:
    """:param workload_s: within which Kueue takes note of a job that names a queue"""

    queue_s: float
    startup_s: float
    run_s: float | None
    workload_s: float


class JobWatch:
    """One job's, for as long as one watcher looks at it."""

    def __init__(self, engine: Engine, limits: Limits, log: Any) -> None:
        self.clock = Clock()
        self._engine, self._limits, self._log = engine, limits, log
        self._told = ""
        self._starts: dict[str, StartWatch] = {}

    def see(
        self,
        name: str,
        state: JobState,
        job: Manifest | None,
        pods: Iterable[Pod],
        *,
        waits_for_quota: bool = False,
    ) -> None:
        """:param waits_for_quota: of the namespace, which lets no further pod in"""
        text = f"{state.stage}: {state.reason}"
        if text != self._told:
            self._told = text
            self._log.info("%s %s is %s", self._engine.kind, name, text)
        phase = _PHASES.get(state.stage, "")
        unqueued = not queue_of(job or {"metadata": {}}) and not all(map(is_scheduled, pods))
        if phase == "start" and (unqueued or waits_for_quota):
            phase = "queue"  # without a queue, this is where nodes are waited for
        self.clock.tick(phase, time.time())

    def judge(
        self, state: JobState, *, queue: str | None, has_workload: bool | None
    ) -> TrainingFailure | None:
        """A time limit that is reached.

        :param has_workload: None where that cannot be known
        """
        waited_s, limits = self.clock.waited_s, self._limits
        last = f"Last: {state.reason}."
        if queue and has_workload is False and state.stage is Stage.QUEUED and waited_s >= limits.workload_s:
            return LaunchFailure(self._unnoticed(queue, limits.workload_s))
        if self.clock.phase == "queue" and waited_s >= limits.queue_s:
            where = f"in the queue {queue!r}" if queue else "for nodes"
            return TransientFailure(
                f"The job waited {describe_duration(limits.queue_s)} {where} and was given up. {last} "
                "Raise queue_timeout_seconds, or ask for less."
            )
        if self.clock.phase == "start" and waited_s >= limits.startup_s:
            return TransientFailure(
                f"The job took {describe_duration(limits.startup_s)} to start and was given up. {last} "
                "Raise startup_timeout_seconds, or correct what its nodes wait for."
            )
        if limits.run_s is not None and self.clock.run_s >= limits.run_s:
            return InterruptedFailure(
                f"The job ran for {describe_duration(limits.run_s)}, which run_timeout_seconds allows. Its nodes save, "
                "and the retry resumes."
            )
        return None

    def judge_start(self, pod: Pod, events: Sequence[Mapping[str, Any]]) -> TrainingFailure | None:
        """A pending pod that will never start: its image, a missing Secret, ConfigMap or volume."""
        watch = self._starts.setdefault(
            pod["metadata"]["uid"], StartWatch(self._engine.container, math.inf, math.inf)
        )
        return watch.judge(pod, events, time.monotonic())

    def _unnoticed(self, queue: str, waited_s: float) -> str:
        said = f"queue_name is {queue!r}, but Kueue took no note of the {self._engine.kind} within {describe_duration(waited_s)}."
        if self._engine.kind == "PyTorchJob":
            return (
                f"{said} Kueue 0.19 ships with its PyTorchJob integration off: add 'kubeflow.org/pytorchjob' to "
                "integrations.frameworks in its configuration, or use another engine."
            )
        return (
            f"{said} Install Kueue with the integration of {self._engine.api_version} {self._engine.kind}, or leave "
            "queue_name out."
        )
