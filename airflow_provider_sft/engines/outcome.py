"""From a job that has ended to what Airflow makes of it: the rules of a pod, applied to the node that decided."""

from __future__ import annotations

import re
from collections.abc import Sequence

from airflow_provider_sft.contract.progress import Progress
from airflow_provider_sft.engines.engine import Manifest
from airflow_provider_sft.engines.nodes import newest_by_rank, rank_of
from airflow_provider_sft.engines.reading import read_job
from airflow_provider_sft.engines.registry import ENGINES_BY_KIND
from airflow_provider_sft.engines.state import JobState, Stage
from airflow_provider_sft.engines.workload import is_stopped
from airflow_provider_sft.failures import (
    InterruptedFailure,
    LostRankFailure,
    PermanentFailure,
    TrainingFailure,
    TransientFailure,
    failure_of_exit,
)
from airflow_provider_sft.pod_outcome import Pod, container_state, failure_of_pod, has_ended

# When one node fails, the others lose it and are told to end: these say little about why.
_CONSEQUENCES = (LostRankFailure, InterruptedFailure)
# Kubernetes' words in a Job's condition, where the pod is not there any more.
_EXIT_CODE = re.compile(r"exit code (\d+)")


def first_node(job: Manifest, pods: Sequence[Pod]) -> Pod | None:
    """The pod that has the result."""
    return newest_by_rank(pods, ENGINES_BY_KIND[job["kind"]].container).get(0)


def failure_of_job(
    state: JobState,
    job: Manifest,
    workload: Manifest | None,
    pods: Sequence[Pod],
    progress: Progress | None = None,
) -> TrainingFailure | None:
    """What ended a job badly, or None where it succeeded and left a result, or its pods are out of sight."""
    container = ENGINES_BY_KIND[job["kind"]].container
    if state.stage is Stage.SUCCEEDED:
        pod = first_node(job, pods)
        return failure_of_pod(pod, container=container, progress=progress) if pod else None
    if is_stopped(workload):
        return PermanentFailure(f"{state.reason}. Ask who runs the queue before you run the task again.")
    found = _deciding_failure(pods, container, progress)
    if found is None:
        return _failure_in_words(state, job)
    pod, failure = found
    name = f"Node {rank_of(pod)}: " if read_job(job).num_nodes > 1 else ""
    said = read_job(job).failed
    job_says = f" The {job['kind']} says: {said}." if said else ""
    return type(failure)(f"{name}{failure}{job_says}", result=failure.result)


def failed_exit_code(job: Manifest, pods: Sequence[Pod]) -> int | None:
    """Of the node that decided."""
    container = ENGINES_BY_KIND[job["kind"]].container
    found = _deciding_failure(pods, container, None)
    terminated = container_state(found[0], container).get("terminated", {}) if found else {}
    code: int | None = terminated.get("exitCode")
    return code


def _deciding_failure(
    pods: Sequence[Pod], container: str, progress: Progress | None
) -> tuple[Pod, TrainingFailure] | None:
    nodes = newest_by_rank(pods, container).values()
    found = [
        (pod, failure)
        for pod in pods
        if has_ended(pod, container)
        and (failure := failure_of_pod(pod, container=container, progress=progress)) is not None
        and (isinstance(failure, PermanentFailure) or pod in nodes)
    ]

    def order(each: tuple[Pod, TrainingFailure]) -> tuple[bool, bool, str]:
        pod, failure = each
        ended_at = container_state(pod, container).get("terminated", {}).get("finishedAt") or "~"
        return not isinstance(failure, PermanentFailure), isinstance(failure, _CONSEQUENCES), ended_at

    return min(found, key=order, default=None)


def _failure_in_words(state: JobState, job: Manifest) -> TrainingFailure:
    """Where no pod is left to tell."""
    said = f"The {job['kind']} failed: {state.reason}."
    if match := _EXIT_CODE.search(state.reason):
        failure = failure_of_exit(int(match.group(1)), None)
        return type(failure)(f"{failure} {said}") if failure else TransientFailure(said)
    if "DeadlineExceeded" in state.reason:
        return InterruptedFailure(f"{said} The retry resumes.")
    return TransientFailure(f"{said} Its pods are gone, so why is not known here. The retry resumes.")
