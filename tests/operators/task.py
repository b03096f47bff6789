"""Running one operator as Airflow's task runner would, without a database: render its templates, then execute."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from airflow.providers.common.compat.sdk import DAG


class Store(dict):
    """Airflow 3.3's task state store, as far as operators see it."""

    def set(self, key: str, value: Any, **_: Any) -> None:
        self[key] = value


class OutletEvents(dict):
    def __missing__(self, asset):
        self[asset] = SimpleNamespace(extra={})
        return self[asset]


def make_context(operator, *, map_index: int = -1, try_number: int = 1, **variables) -> dict[str, Any]:
    pushed: dict[str, Any] = {}
    run_id = "manual__2026-01-01T00:00:00+00:00"
    ti = SimpleNamespace(
        dag_id=operator.dag_id,
        task_id=operator.task_id,
        run_id=run_id,
        map_index=map_index,
        try_number=try_number,
        start_date=datetime.now(UTC),
        pushed=pushed,
        xcom_push=lambda key, value: pushed.update({key: value}),
    )
    return {
        "ti": ti,
        "task_instance": ti,
        "run_id": run_id,
        "dag": operator.dag,
        "params": {},
        "task_state_store": Store(),
        "outlet_events": OutletEvents(),
        **variables,
    }


def make_operator(operator_class, folder=None, **kwargs):
    """The operator in a DAG of its own; `folder` becomes the DAG's."""
    dag = DAG("tune_dag", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC))
    if folder is not None:
        dag.fileloc = str(folder / "dag.py")
    return operator_class(task_id="tune", dag=dag, **kwargs)


def render(operator, context):
    operator.render_template_fields(context, operator.dag.get_template_env())
    return operator


def run(operator, context=None):
    context = context or make_context(operator)
    return render(operator, context).execute(context)
