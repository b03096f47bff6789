"""Airflow's metrics of trainings: gauges while they run, a counter and GPU hours when they end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_sft.contract.outcome import Result
from airflow_provider_sft.contract.progress import Progress

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

Tags = Mapping[str, str]

_GAUGES = ("step", "max_steps", "loss", "eval_loss", "learning_rate", "tokens_per_s", "eta_s")
_SECONDS_PER_HOUR = 3600


def task_tags(context: Context) -> dict[str, str]:
    return {"dag_id": context["ti"].dag_id, "task_id": context["ti"].task_id}


def emit_progress(progress: Progress, tags: Tags) -> None:
    """`sft.step`, `sft.loss`, … as gauges."""
    for name in _GAUGES:
        if isinstance(value := progress.get(name), int | float):
            Stats.gauge(f"sft.{name}", value, tags=dict(tags))


def emit_end(outcome: str, result: Result | None, tags: Tags) -> None:
    """`sft.runs`, counted by outcome, and `sft.gpu_hours` over all attempts.

    :param outcome: `succeeded`, or the name of the failure's class
    """
    Stats.incr("sft.runs", tags={**tags, "outcome": outcome})
    if result and result.get("gpu_s"):
        Stats.gauge("sft.gpu_hours", result["gpu_s"] / _SECONDS_PER_HOUR, tags=dict(tags))
