"""Who runs: the identity of a task instance that its retries share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


def build_run_id(context: Context) -> str:
    """`dag/run/task/map index`: the value of SFT_RUN_ID. The try number is no part of it: a retry is the same run."""
    ti = context["ti"]
    parts = [ti.dag_id, ti.run_id, ti.task_id]
    map_index = ti.map_index
    return "/".join(parts if map_index is None or map_index < 0 else [*parts, str(map_index)])
