"""What a job of any kind says of itself, in the same words. Pure over the job as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_sft.engines.engine import Manifest

# The types of the conditions that end a job of any kind.
ENDS = ("Complete", "Completed", "Succeeded", "Failed")


@dataclass(frozen=True)
class Reading:
    """
    :param succeeded: the engine's own words, where the job has; likewise `failed`
    :param restarts: None where the job does not count them
    :param runs: whether all nodes run, as the job sees it
    :param restarting: its words, while it says so
    """

    num_nodes: int
    suspended: bool
    succeeded: str | None
    failed: str | None
    restarts: int | None = None
    runs: bool = False
    restarting: str | None = None


def read_job(job: Manifest) -> Reading:
    return _READERS[job["kind"]](job)


def find_condition(obj: Mapping[str, Any], *kinds: str, status: str = "True") -> Mapping[str, Any] | None:
    for condition in obj.get("status", {}).get("conditions") or []:
        if condition.get("type") in kinds and condition.get("status") == status:
            found: Mapping[str, Any] = condition
            return found
    return None


def describe_condition(condition: Mapping[str, Any] | None) -> str | None:
    """`Reason: message`, as far as there is one."""
    if condition is None:
        return None
    words = [condition.get("reason") or condition["type"], condition.get("message")]
    return ": ".join(word.strip().rstrip(".") for word in words if word)


def _read_batch_job(job: Manifest) -> Reading:
    spec, status = job["spec"], job.get("status", {})
    num_nodes, ready = spec.get("parallelism", 1), status.get("ready", 0)
    return Reading(
        num_nodes=num_nodes,
        suspended=bool(spec.get("suspend")),
        succeeded=_said(job, "Complete"),
        failed=_said(job, "Failed"),
        restarts=status.get("failed", 0),
        runs=bool(ready) and ready + status.get("succeeded", 0) >= num_nodes,
    )


def _read_jobset(job: Manifest) -> Reading:
    spec, status = job["spec"], job.get("status", {})
    nodes = spec["replicatedJobs"][0]["template"]["spec"]
    return Reading(
        num_nodes=nodes.get("parallelism", 1),
        suspended=bool(spec.get("suspend")),
        succeeded=_said(job, "Completed"),
        failed=_said(job, "Failed"),
        restarts=status.get("restarts", 0),
        runs=_any_ready(status.get("replicatedJobsStatus")),
    )


def _read_trainjob(job: Manifest) -> Reading:
    """There is no Running condition, and restarts are counted in the JobSet behind it."""
    spec, status = job["spec"], job.get("status", {})
    return Reading(
        num_nodes=spec.get("trainer", {}).get("numNodes", 1),
        suspended=bool(spec.get("suspend")),
        succeeded=_said(job, "Complete"),
        failed=_said(job, "Failed"),
        runs=_any_ready(status.get("jobsStatus")),
    )


def _read_pytorchjob(job: Manifest) -> Reading:
    spec, status = job["spec"], job.get("status", {})
    replicas = status.get("replicaStatuses") or {}
    return Reading(
        num_nodes=sum(replica.get("replicas", 1) for replica in spec["pytorchReplicaSpecs"].values()),
        suspended=bool(spec.get("runPolicy", {}).get("suspend")),
        succeeded=_said(job, "Succeeded"),
        failed=_said(job, "Failed"),
        restarts=sum(replica.get("failed", 0) for replica in replicas.values()),
        runs=find_condition(job, "Running") is not None,
        restarting=_said(job, "Restarting"),
    )


def _said(job: Manifest, kind: str) -> str | None:
    return describe_condition(find_condition(job, kind))


def _any_ready(jobs: Iterable[Mapping[str, Any]] | None) -> bool:
    """Of Jobs, not pods: ours is one, ready when all of its pods are."""
    return any(each.get("ready", 0) for each in jobs or [])


_READERS: Mapping[str, Callable[[Manifest], Reading]] = {
    "Job": _read_batch_job,
    "JobSet": _read_jobset,
    "TrainJob": _read_trainjob,
    "PyTorchJob": _read_pytorchjob,
}
