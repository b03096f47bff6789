"""How a job and Kueue's Workload of it are told. Pure."""

from __future__ import annotations

from airflow_provider_sft.engines.engine import Manifest

QUEUE_GROUP = "kueue.x-k8s.io"
_QUEUE_LABEL = f"{QUEUE_GROUP}/queue-name"


def queue_of(job: Manifest) -> str | None:
    queue: str | None = (job["metadata"].get("labels") or {}).get(_QUEUE_LABEL)
    return queue


def select_workload(job: Manifest) -> str:
    """The label selector of a job's Workload."""
    return f"{QUEUE_GROUP}/job-uid={job['metadata']['uid']}"
