"""Where a job is, from the job, Kueue's Workload and the pods. Pure; each of the last two may be out of sight."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from airflow_provider_sft.engines.engine import Manifest
from airflow_provider_sft.engines.kueue import queue_of
from airflow_provider_sft.engines.nodes import describe_nodes, newest_by_rank, rank_of, runs
from airflow_provider_sft.engines.reading import Reading, read_job
from airflow_provider_sft.engines.registry import ENGINES_BY_KIND
from airflow_provider_sft.engines.workload import describe_wait, is_admitted, is_evicted, is_stopped
from airflow_provider_sft.failures import PermanentFailure
from airflow_provider_sft.pod_outcome import Pod, failure_of_pod, has_ended


class Stage(enum.StrEnum):
    """In the order of a job's life."""

    QUEUED = "queued"  # by Kueue, and never admitted so far
    ADMITTED = "admitted"  # no pod yet
    STARTING = "starting"  # not all nodes run
    RUNNING = "running"
    RESTARTING = "restarting"  # by its engine, after a node was lost
    REQUEUED = "requeued"  # Kueue took its quota away and will give it again
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True)
class JobState:
    """:param reason: in words, Kubernetes' own where it has any"""

    stage: Stage
    reason: str


def classify(job: Manifest | None, workload: Manifest | None, pods: Sequence[Pod] | None) -> JobState:
    """
    :param job: None where it does not exist any more
    :param workload: None without Kueue, or where it may not be read
    :param pods: of all attempts; None where they may not be read
    """
    if job is None:
        return JobState(Stage.GONE, "the job does not exist any more")
    reading = read_job(job)
    return (
        _ended(job, reading, workload, pods)
        or _waiting(reading, workload, queue_of(job))
        or _working(job, reading, workload, pods)
    )


def _ended(
    job: Manifest, reading: Reading, workload: Manifest | None, pods: Sequence[Pod] | None
) -> JobState | None:
    if reading.succeeded:
        return JobState(Stage.SUCCEEDED, reading.succeeded)
    if reading.failed:
        return JobState(Stage.FAILED, reading.failed)
    if "deletionTimestamp" in job["metadata"]:
        return JobState(Stage.GONE, "the job is being deleted")
    if stopped := is_stopped(workload):
        return JobState(Stage.FAILED, f"Kueue stopped the job for good: {stopped}")
    if lasting := _lasting_failure(pods or [], ENGINES_BY_KIND[job["kind"]].container):
        return JobState(Stage.FAILED, lasting)
    return None


def _lasting_failure(pods: Iterable[Pod], container: str) -> str | None:
    """A node's end that a restart cannot change, whatever the engine thinks of it: memory, storage, 201, 202."""
    for pod in pods:
        if has_ended(pod, container):
            failure = failure_of_pod(pod, container=container)
            if isinstance(failure, PermanentFailure):
                return f"node {rank_of(pod)}: {failure}"
    return None


def _waiting(reading: Reading, workload: Manifest | None, queue: str | None) -> JobState | None:
    evicted = is_evicted(workload)
    if evicted:
        again = describe_wait(workload) if reading.suspended else "the nodes save and end"
        return JobState(Stage.REQUEUED, f"{evicted}; {again}")
    if not reading.suspended:
        return None
    if is_admitted(workload):
        return JobState(Stage.ADMITTED, describe_wait(workload))
    return JobState(Stage.QUEUED, describe_wait(workload, queue=queue))


def _working(
    job: Manifest, reading: Reading, workload: Manifest | None, pods: Sequence[Pod] | None
) -> JobState:
    if not pods:
        return _unseen(reading, workload, may_be_seen=pods is not None)
    container = ENGINES_BY_KIND[job["kind"]].container
    nodes = newest_by_rank(pods, container)
    words = describe_nodes(nodes, reading.num_nodes, container)
    running = sum(runs(pod, container) for pod in nodes.values())
    # A node that has done its part stays; the others finish.
    done = sum(_succeeded(pod, container) for pod in nodes.values())
    if running + done >= reading.num_nodes and not _is_leaving(nodes.values()):
        return JobState(Stage.RUNNING, words if running else "all nodes have ended well")
    if _was_tried_before(reading, nodes, pods, container):
        return JobState(Stage.RESTARTING, f"{reading.restarting}; {words}" if reading.restarting else words)
    return JobState(Stage.STARTING, words)


def _unseen(reading: Reading, workload: Manifest | None, *, may_be_seen: bool) -> JobState:
    """What the job itself says, where there are no pods or none to be seen here."""
    if reading.runs:
        return JobState(Stage.RUNNING, "the job says that it runs")
    if reading.restarting or reading.restarts:
        return JobState(
            Stage.RESTARTING, reading.restarting or f"{reading.restarts} restarts; no node runs yet"
        )
    if workload is not None and is_admitted(workload):
        return JobState(Stage.ADMITTED, f"admitted; no pod {'yet' if may_be_seen else 'is seen'}")
    return JobState(Stage.STARTING, "the engine has made no pod yet")


def _is_leaving(pods: Iterable[Pod]) -> bool:
    return any("deletionTimestamp" in pod["metadata"] for pod in pods)


def _succeeded(pod: Pod, container: str) -> bool:
    return has_ended(pod, container) and failure_of_pod(pod, container=container) is None


def _was_tried_before(reading: Reading, nodes: dict[int, Pod], pods: Sequence[Pod], container: str) -> bool:
    ended_badly = any(has_ended(pod, container) and not _succeeded(pod, container) for pod in pods)
    return bool(reading.restarting or reading.restarts) or ended_badly or len(pods) > len(nodes)
