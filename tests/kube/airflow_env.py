"""An Airflow for operator tests: a home, a migrated SQLite database, and DAG runs in processes of their own.

    run = airflow.run_dag(DAG_SOURCE, "tune")            # to the end: state, tasks, XComs, log
    run = airflow.start_dag(DAG_SOURCE, "tune")          # in the background: run.kill(), run.terminate(), run.wait()
    run = airflow.resume(run)                            # after the worker died: the task is tried again

One process imports Airflow once a session (tests/kube/airflow_worker.py); a run is a fork of it with a fresh copy of
the database, so that it takes a second or two and may be killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

_IMPORT_WITHIN_S = 180
_RUN_WITHIN_S = 120
_MARK = "# written by tests/kube/airflow_env.py\n"


@dataclass(frozen=True)
class TaskOutcome:
    task_id: str
    map_index: int
    state: str
    try_number: int
    xcoms: dict[str, Any]


@dataclass(frozen=True)
class RunOutcome:
    """A DAG run at its end.

    :param log: everything that scheduler, triggerer and tasks wrote
    """

    run_id: str
    state: str
    tasks: list[TaskOutcome]
    log: str

    def task(self, task_id: str, map_index: int = -1) -> TaskOutcome:
        return next(t for t in self.tasks if (t.task_id, t.map_index) == (task_id, map_index))


@dataclass
class DagProcess:
    """A DAG run under way in a process of its own, which plays scheduler, worker and triggerer."""

    dag_file: Path
    dag_id: str
    database: Path
    log_file: Path
    pid: int
    _connection: socket.socket = field(repr=False)
    _answers: Any = field(repr=False)

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait(self, timeout_s: float = _RUN_WITHIN_S) -> RunOutcome:
        """:raises RuntimeError: when the process died or the run could not be made"""
        self._connection.settimeout(timeout_s)
        answer = self._answers.readline()
        self._connection.close()
        if not answer:
            raise RuntimeError(
                f"The process of DAG {self.dag_id!r} died. Its log ends with:\n{self.log[-3000:]}"
            )
        outcome = json.loads(answer)
        if "error" in outcome:
            raise RuntimeError(
                f"DAG {self.dag_id!r} could not be run:\n{outcome['error']}\n{self.log[-3000:]}"
            )
        tasks = [TaskOutcome(**task) for task in outcome["tasks"]]
        return RunOutcome(outcome["run_id"], outcome["state"], tasks, self.log)

    def terminate(self) -> None:
        """SIGTERM, as to a worker that is drained."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as to a worker whose machine is lost. Returns when the process is gone."""
        descriptor = os.pidfd_open(self.pid)
        try:
            os.kill(self.pid, signal.SIGKILL)
            self._connection.settimeout(_RUN_WITHIN_S)
            self._answers.readline()
        finally:
            os.close(descriptor)


class AirflowEnv:
    """One AIRFLOW_HOME with its dags folder, and the process that runs DAGs from it.

    :param home: an empty directory
    :param database: a migrated SQLite database, copied for each run
    """

    def __init__(self, home: Path, database: Path) -> None:
        self.home, self.dags_dir = home, home / "dags"
        self._template = database
        self._num_runs = 0
        self._socket = Path(tempfile.mkdtemp(prefix="airflow-")) / "worker"  # a socket's path must be short
        self._worker: subprocess.Popen[str] | None = None
        self.dags_dir.mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._worker:
            self._worker.kill()
            self._worker.wait()
        shutil.rmtree(self._socket.parent)

    def run_dag(self, source: str, dag_id: str, **options: Any) -> RunOutcome:
        """`start_dag` and wait. The options are those of `start_dag`."""
        return self.start_dag(source, dag_id, **options).wait()

    def start_dag(
        self,
        source: str,
        dag_id: str,
        *,
        conf: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        logical_date: datetime | None = None,
    ) -> DagProcess:
        """Write the DAG file into the dags folder and `dag.test()` it.

        :param source: Python; common indentation is taken away
        :param env: for the run's process, AIRFLOW__… and AIRFLOW_CONN_… among them
        """
        for old in self.dags_dir.glob("*.py"):
            old.unlink()
        dag_file = self.dags_dir / f"{dag_id}.py"
        dag_file.write_text(_MARK + textwrap.dedent(source))
        self._num_runs += 1
        run_dir = self.home / f"run-{self._num_runs}"
        run_dir.mkdir()
        database = Path(shutil.copy(self._template, run_dir / "airflow.db"))
        request = {"conf": dict(conf or {}), "logical_date": (logical_date or datetime.now(UTC)).isoformat()}
        return self._request("test", dag_file, dag_id, database, env, **request)

    def resume(self, run: DagProcess, env: Mapping[str, str] | None = None) -> DagProcess:
        """Try the unfinished tasks of a run again, in a new process on the same database."""
        return self._request("resume", run.dag_file, run.dag_id, run.database, env)

    def inspect(self, run: DagProcess) -> RunOutcome:
        """The run as its database has it; for a process that was killed."""
        return self._request("inspect", run.dag_file, run.dag_id, run.database, None).wait()

    def _request(
        self,
        action: str,
        dag_file: Path,
        dag_id: str,
        database: Path,
        env: Mapping[str, str] | None,
        **more: Any,
    ) -> DagProcess:
        self._ensure_worker()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._socket))
        log = database.with_name("log.txt")
        request = {"action": action, "dag_file": str(dag_file), "dag_id": dag_id, "database": str(database)}
        request |= {"log": str(log), "env": dict(env or {}), **more}
        connection.sendall(json.dumps(request).encode() + b"\n")
        answers = connection.makefile("r")
        pid = json.loads(answers.readline())["pid"]
        return DagProcess(dag_file, dag_id, database, log, pid, connection, answers)

    def _ensure_worker(self) -> None:
        if self._worker and self._worker.poll() is None:
            return
        command = [sys.executable, "-m", "tests.kube.airflow_worker", str(self._socket)]
        self._worker = subprocess.Popen(
            command,
            env=worker_env(self.home, self._template),
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(self.home / "worker.log").open("w"),
            text=True,
        )
        assert self._worker.stdout is not None
        while (line := self._worker.stdout.readline()) != "ready\n":
            if not line:
                raise RuntimeError(
                    f"Airflow could not be imported:\n{(self.home / 'worker.log').read_text()[-3000:]}"
                )


def worker_env(home: Path, database: Path) -> dict[str, str]:
    """The environment of an Airflow that knows nothing of the machine's own."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "KUBE"))}
    return inherited | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{database}",
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
        "AIRFLOW__WORKERS__API_RETRY_WAIT_MIN": "0.05",  # KubernetesPodOperator's back-off after API errors
        "AIRFLOW__WORKERS__API_RETRY_WAIT_MAX": "0.2",
        "NO_COLOR": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


def migrate_database(home: Path) -> Path:
    """A migrated SQLite database in `home`; takes five seconds."""
    home.mkdir(parents=True)
    database = home / "airflow.db"
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    subprocess.run(
        command, env=worker_env(home, database), check=True, capture_output=True, timeout=_IMPORT_WITHIN_S
    )
    return database
