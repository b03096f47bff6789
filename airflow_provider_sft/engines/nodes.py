"""A job's pods as nodes of a training: which is which, and how each is. Pure over pods as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from airflow_provider_sft.pod_outcome import Pod, container_state, has_ended
from airflow_provider_sft.pod_start import describe_waiting

_INDEX = "batch.kubernetes.io/job-completion-index"
_REPLICA_TYPE, _REPLICA_INDEX = (
    "training.kubeflow.org/replica-type",
    "training.kubeflow.org/replica-index",
)


def rank_of(pod: Pod) -> int:
    """Which node a pod is. The first, 0, has the log, the progress and the result."""
    metadata = pod["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    if _REPLICA_TYPE in labels:
        index = int(labels.get(_REPLICA_INDEX, 0))
        return index if labels[_REPLICA_TYPE].lower() == "master" else index + 1
    return int(labels.get(_INDEX) or annotations.get(_INDEX) or 0)


def newest_by_rank(pods: Iterable[Pod], container: str) -> dict[int, Pod]:
    """Each node's pod of now; earlier attempts leave theirs behind."""

    def age(pod: Pod) -> tuple[str, bool, bool]:
        metadata = pod["metadata"]
        alive = not has_ended(pod, container)
        return metadata.get("creationTimestamp", ""), "deletionTimestamp" not in metadata, alive

    return {rank_of(pod): pod for pod in sorted(pods, key=age)}


def runs(pod: Pod, container: str) -> bool:
    return not has_ended(pod, container) and "running" in container_state(pod, container)


def describe_nodes(nodes: dict[int, Pod], num_nodes: int, container: str) -> str:
    """`1 of 2 nodes run; node 1 waits: Unschedulable: …`"""
    running = sum(runs(pod, container) for pod in nodes.values())
    counted = "The node runs" if num_nodes == running == 1 else f"{running} of {num_nodes} nodes run"
    others = [
        f"node {rank} {_describe(nodes.get(rank), container)}"
        for rank in range(num_nodes)
        if rank not in nodes or not runs(nodes[rank], container)
    ]
    shown: Sequence[str] = others[:2]
    more = [f"{len(others) - 2} more likewise"] if len(others) > 2 else []  # noqa: PLR2004
    return "; ".join([counted, *shown, *more])


def _describe(pod: Pod | None, container: str) -> str:
    if pod is None:
        return "has no pod yet"
    if ended := container_state(pod, container).get("terminated"):
        return f"ended with exit code {ended['exitCode']}"
    if has_ended(pod, container):
        return f"failed: {pod['status'].get('reason', 'no reason')}"
    return f"waits: {describe_waiting(pod, container)}"
