"""What a job that has ended tells of itself: all there is where its pods are out of sight. Pure over the job as JSON."""

from __future__ import annotations

from typing import Any

from airflow_provider_sft.engines.engine import Manifest
from airflow_provider_sft.engines.reading import ENDS, find_condition, read_job
from airflow_provider_sft.engines.registry import ENGINES_BY_KIND


def summarize_job(job: Manifest) -> dict[str, Any]:
    """`job_name`, `job_says`, `restarts`, `started_at`, `completed_at` and the like, as far as the engine keeps them.

    JobSet and TrainJob have times in their conditions alone. `trainer_status` is what Kubeflow's Trainer 2.2 and newer
    keeps of a trainer that reports to it; ours does not.
    """
    reading, status, metadata = read_job(job), job.get("status", {}), job["metadata"]
    resumed = find_condition(job, "Suspended", status="False") or {}
    told = {
        "job_name": metadata["name"],
        "job_namespace": metadata.get("namespace"),
        "job_engine": ENGINES_BY_KIND[job["kind"]].name,
        "job_says": reading.succeeded or reading.failed,
        "num_nodes": reading.num_nodes,
        "restarts": reading.restarts,
        "started_at": status.get("startTime")
        or resumed.get("lastTransitionTime")
        or metadata.get("creationTimestamp"),
        "completed_at": find_end_time(job),
        "trainer_status": status.get("trainerStatus"),
    }
    return {key: value for key, value in told.items() if value is not None}


def find_end_time(job: Manifest) -> str | None:
    """In RFC 3339; a job that failed has no completionTime."""
    ended = find_condition(job, *ENDS) or {}
    time: str | None = job.get("status", {}).get("completionTime") or ended.get("lastTransitionTime")
    return time
