"""What tests/kube/airflow_worker.py does otherwise on Airflow 2: no SDK, no API between task and database."""

from __future__ import annotations

import contextlib
import io
import logging
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

IS_AIRFLOW_TWO = version("apache-airflow").startswith("2.")


def import_once() -> None:
    """Pay before the fork: imports and the ORM's mappers."""
    import airflow.providers.cncf.kubernetes.operators.pod  # noqa: F401
    from airflow import settings
    from airflow.models.dagbag import DagBag  # noqa: F401
    from sqlalchemy.orm import configure_mappers

    settings.initialize()
    configure_mappers()
    settings.dispose_orm()


def run_dag(request: dict[str, Any]) -> dict[str, Any]:
    """`dag.test()` of a DAG in a file of the dags folder."""
    dag = _load_dag(Path(request["dag_file"]), request["dag_id"])
    return _run_to_the_end(dag, datetime.fromisoformat(request["logical_date"]), request["conf"])


def resume_run(request: dict[str, Any]) -> dict[str, Any]:
    """What Airflow does when the process of a run has died; a task that it had deferred is tried once more here."""
    from airflow.models import dag as dag_module
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    dag = _load_dag(Path(request["dag_file"]), request["dag_id"])
    with create_session() as session:
        run = session.query(DagRun).filter_by(dag_id=dag.dag_id).one()
        run.state, run_id, date = "running", run.run_id, run.execution_date
        for ti in run.get_task_instances(session=session):
            ti.state = None

    def find_run(*, dag: Any, session: Any, **_: Any) -> Any:
        found = session.query(DagRun).filter_by(run_id=run_id).one()
        found.dag = dag
        return found

    dag_module._get_or_create_dagrun = find_run
    return _run_to_the_end(dag, date, {})


def _run_to_the_end(dag: Any, date: datetime, conf: dict[str, Any]) -> dict[str, Any]:
    """`dag.test()`, in which a task has a start, and its end by SIGTERM or time is not the run's."""
    from airflow.exceptions import AirflowTaskTerminated, AirflowTaskTimeout
    from airflow.models import dag as dag_module
    from airflow.models.taskinstance import TaskInstance

    run_task = dag_module._run_task

    def run_task_as_a_worker_does(*, ti: Any, session: Any, **options: Any) -> None:
        session.query(TaskInstance).filter_by(run_id=ti.run_id).update({"start_date": datetime.now(UTC)})
        session.commit()
        with contextlib.suppress(AirflowTaskTerminated, AirflowTaskTimeout):  # the state tells
            run_task(ti=ti, session=session, **options)

    dag_module._run_task = run_task_as_a_worker_does
    # `dag.test()` adds a handler where a task has none, beside the console's: every line would come twice.
    logging.getLogger("airflow.task").addHandler(logging.StreamHandler(io.StringIO()))
    run = dag.test(execution_date=date, run_conf=conf)
    return _describe_run(run.dag_id, run.run_id)


def _load_dag(path: Path, dag_id: str) -> Any:
    from airflow.models.dagbag import DagBag

    bag = DagBag(path, include_examples=False)
    if bag.import_errors:
        raise RuntimeError(f"DAG file {path} does not import: {bag.import_errors}")
    return bag.dags[dag_id]


def _describe_run(dag_id: str, run_id: str) -> dict[str, Any]:
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XCom
    from airflow.utils.session import create_session

    with create_session() as session:
        run = session.query(DagRun).filter_by(dag_id=dag_id, run_id=run_id).one()
        xcoms = session.query(XCom).filter_by(run_id=run_id).all()
        tasks = [
            {
                "task_id": ti.task_id,
                "map_index": ti.map_index,
                "state": ti.state,
                "try_number": ti.try_number,
                "xcoms": {
                    x.key: x.value for x in xcoms if (x.task_id, x.map_index) == (ti.task_id, ti.map_index)
                },
            }
            for ti in session.query(TaskInstance).filter_by(run_id=run_id)
        ]
        return {"dag_id": dag_id, "run_id": run_id, "state": run.state, "tasks": tasks}
