"""Runs DAGs for tests in a child process each, forked from one process that has imported Airflow once.

`python -m tests.kube.airflow_worker SOCKET` listens on a Unix socket. A connection carries one JSON request; the
child that is forked for it answers `{"pid": …}` at once and its outcome at the end. A child that is killed answers
nothing more: the connection just ends, as it does for a worker that dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.kube import airflow_two
from tests.kube.airflow_two import IS_AIRFLOW_TWO

_SCHEDULER_S = 0.1  # between two looks for what can be scheduled


def main(argv: list[str]) -> int:
    """Serve until the parent closes this process's stdin, be it by dying."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(argv[0])
    airflow_two.import_once() if IS_AIRFLOW_TWO else _import_once()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    listener.listen()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os._exit(_serve(connection))
        connection.close()
    return 0


def _import_once() -> None:
    """Pay before the fork: imports, the ORM's mappers, and the routes the execution API makes at its first request."""
    import airflow.providers.cncf.kubernetes.operators.pod  # noqa: F401
    import httpx
    from airflow import settings
    from airflow.models.dagbag import DBDagBag  # noqa: F401
    from airflow.sdk.execution_time.supervisor import in_process_api_server
    from sqlalchemy.orm import configure_mappers

    settings.initialize()
    configure_mappers()

    async def ask() -> None:
        transport = in_process_api_server().atransport
        async with httpx.AsyncClient(transport=transport, base_url="http://in-process.invalid") as client:
            await client.get("/no-such-path")

    asyncio.run(ask())
    settings.dispose_orm(do_log=False)


def _serve(connection: socket.socket) -> int:
    """In the child: run the request, answer, and return the exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    with connection, connection.makefile("rw") as channel:
        request = json.loads(channel.readline())
        channel.write(json.dumps({"pid": os.getpid()}) + "\n")
        channel.flush()
        _redirect_output(Path(request["log"]))
        try:
            _configure(request)
            outcome = _ACTIONS[request["action"]](request)
        except BaseException:  # noqa: BLE001 - whatever it was, the test shall read it
            outcome = {"error": traceback.format_exc()}
        channel.write(json.dumps(outcome, default=str) + "\n")
    return 0


def _redirect_output(log: Path) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _configure(request: dict[str, Any]) -> None:
    from airflow import settings

    settings_of_run = {
        "AIRFLOW__CORE__DAGS_FOLDER": str(Path(request["dag_file"]).parent),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{request['database']}",
    }
    os.environ.update(settings_of_run | request["env"])
    settings.configure_vars()
    settings.configure_orm()


def _test_dag(request: dict[str, Any]) -> dict[str, Any]:
    """`dag.test()` of a DAG in a file of the dags folder."""
    dag = _load_dag(Path(request["dag_file"]), request["dag_id"])
    logical_date = datetime.fromisoformat(request["logical_date"])
    run = dag.test(logical_date=logical_date, run_conf=request["conf"])
    return _describe_run(run.dag_id, run.run_id)


def _resume_run(request: dict[str, Any]) -> dict[str, Any]:
    """What Airflow does when the process of a run has died.

    A deferred task belongs to no worker: the restarted triggerer takes its trigger up again, and the try goes on.
    Any other unfinished task is tried once more.
    """
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    dag = _load_dag(Path(request["dag_file"]), request["dag_id"])
    with create_session() as session:
        run = session.scalars(select(DagRun).where(DagRun.dag_id == dag.dag_id)).one()
        tis = session.scalars(select(TaskInstance).where(TaskInstance.run_id == run.run_id)).all()
        unfinished = [ti for ti in tis if ti.state not in ("success", "skipped")]
        run.state, run_id = "running", run.run_id
        for ti in unfinished:
            if not ti.next_method:
                ti.state, ti.max_tries = None, max(ti.max_tries, ti.try_number)
    for ti in unfinished:
        if ti.next_method:
            _restart_trigger(ti)
            _run_task_instance(ti, dag)
    _run_to_the_end(dag, run_id)
    return _describe_run(dag.dag_id, run_id)


def _restart_trigger(ti: Any) -> None:
    """Run the trigger that the database holds to its event, and let the task be taken up with it."""
    from airflow.models.trigger import Trigger
    from airflow.sdk._shared.module_loading import import_string
    from airflow.sdk.api.datamodels._generated import TaskInstance
    from airflow.sdk.definitions.dag import _run_inline_trigger
    from airflow.sdk.serde import serialize
    from airflow.utils.session import create_session

    with create_session() as session:
        row = session.get_one(Trigger, ti.trigger_id)
        trigger = import_string(row.classpath)(**row.kwargs)
    fields = ("id", "task_id", "dag_id", "run_id", "try_number", "map_index", "dag_version_id")
    event = _run_inline_trigger(trigger, TaskInstance(**{name: getattr(ti, name) for name in fields}))
    with create_session() as session:
        ti.next_kwargs, ti.state = {"event": serialize(event.payload)}, "scheduled"
        session.merge(ti)


def _run_task_instance(ti: Any, dag: Any) -> None:
    from airflow.sdk.definitions.dag import _run_task

    with contextlib.suppress(Exception):  # the state tells
        _run_task(ti=ti, task=dag.task_dict[ti.task_id], run_triggerer=True)


def _run_to_the_end(dag: Any, run_id: str) -> None:
    """The loop of `dag.test()`, for a run that exists already."""
    from airflow.models.dagrun import DagRun
    from airflow.serialization.serialized_objects import DagSerialization
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        run = session.scalars(select(DagRun).where(DagRun.run_id == run_id)).one()
        run.dag = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
        while run.state == "running":
            session.expire_all()
            schedulable, _ = run.update_state(session=session)
            for ti in schedulable:
                ti.try_number += 1
                ti.state = "scheduled"
            session.commit()
            for ti in schedulable:
                _run_task_instance(ti, dag)
            if not schedulable:
                time.sleep(_SCHEDULER_S)


def _run_python(request: dict[str, Any]) -> dict[str, Any]:
    """Execute Python in the Airflow process and return what it leaves in `result`."""
    namespace: dict[str, Any] = {}
    exec(request["source"], namespace)
    return {"result": namespace.get("result")}


def _inspect(request: dict[str, Any]) -> dict[str, Any]:
    """The newest run as the database has it, for a run whose process was killed."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        query = select(DagRun.run_id).where(DagRun.dag_id == request["dag_id"]).order_by(DagRun.id.desc())
        run_id = session.scalars(query).first() or ""
    return _describe_run(request["dag_id"], run_id)


def _load_dag(path: Path, dag_id: str) -> Any:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(path)
    if bag.import_errors:
        raise RuntimeError(f"DAG file {path} does not import: {bag.import_errors}")
    return bag.dags[dag_id]


def _describe_run(dag_id: str, run_id: str) -> dict[str, Any]:
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        run = session.scalars(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)).one()
        tis = session.scalars(select(TaskInstance).where(TaskInstance.run_id == run_id)).all()
        xcoms = session.scalars(select(XComModel).where(XComModel.run_id == run_id)).all()
        tasks = [
            {
                "task_id": ti.task_id,
                "map_index": ti.map_index,
                "state": ti.state,
                "try_number": ti.try_number,
                "xcoms": {
                    x.key: XComModel.deserialize_value(x)
                    for x in xcoms
                    if (x.task_id, x.map_index) == (ti.task_id, ti.map_index)
                },
            }
            for ti in tis
        ]
        return {"dag_id": dag_id, "run_id": run_id, "state": run.state, "tasks": tasks}


_ACTIONS = {
    "test": airflow_two.run_dag if IS_AIRFLOW_TWO else _test_dag,
    "resume": airflow_two.resume_run if IS_AIRFLOW_TWO else _resume_run,
    "inspect": _inspect,
    "python": _run_python,
}

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
