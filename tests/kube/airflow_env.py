"""An Airflow for operator tests: a home, a migrated SQLite database, and DAG runs in processes of their own.

    run = airflow.run_dag(DAG_SOURCE, "tune")            # to the end: state, tasks, XComs, log
    run = airflow.start_dag(DAG_SOURCE, "tune")          # in the background: run.kill(), run.terminate(), run.wait()
    run = airflow.resume(run)                            # after it was killed: as Airflow would go on

One process imports Airflow once a session (tests/kube/airflow_worker.py); a run is a fork of it with a fresh copy of
the database, so that it takes a second or two and may be killed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

_IMPORT_WITHIN_S = 180
_RUN_WITHIN_S = 120
_ROOT = Path(__file__).parents[2]


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


class DagProcess:
    """A DAG run under way in a process of its own, which plays scheduler, worker and triggerer.

    :param request: what it was asked for; see airflow_worker.py
    """

    def __init__(self, request: dict[str, Any], connection: socket.socket) -> None:
        self.request = request
        self._connection = connection
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self._answers = connection.makefile("r")
        self.pid: int = json.loads(self._answers.readline())["pid"]

    @property
    def log(self) -> str:
        """What it has written so far."""
        path = Path(self.request["log"])
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for_log(self, pattern: str, timeout_s: float = 60) -> None:
        """Return when the log matches the regular expression. :raises TimeoutError: when it does not"""
        end = time.monotonic() + timeout_s
        while not re.search(pattern, self.log):
            if time.monotonic() > end:
                raise TimeoutError(f"{pattern!r} is not in the log after {timeout_s} s:\n{self.log[-3000:]}")
            time.sleep(0.02)

    def wait(self, timeout_s: float = _RUN_WITHIN_S) -> RunOutcome:
        """:raises RuntimeError: when the process died or the run could not be made"""
        answer = self.read_answer(timeout_s)
        tasks = [TaskOutcome(**task) for task in answer["tasks"]]
        return RunOutcome(answer["run_id"], answer["state"], tasks, self.log)

    def read_answer(self, timeout_s: float = _RUN_WITHIN_S) -> dict[str, Any]:
        """:raises RuntimeError: when there is none (the process is killed after `timeout_s`), or an error"""
        self._connection.settimeout(timeout_s)
        try:
            answer = json.loads(self._answers.readline() or '{"error": "The process died."}')
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)
            answer = {"error": f"The process had no end within {timeout_s} s."}
        self._connection.close()
        if "error" in answer:
            raise RuntimeError(f"{answer['error']}\nThe log ends with:\n{self.log[-3000:]}")
        return dict(answer)

    def terminate(self) -> None:
        """SIGTERM, as to a worker that is drained."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as to a worker whose machine is lost. Returns when the process is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self._connection.settimeout(_RUN_WITHIN_S)
        self._answers.readline()


class AirflowEnv:
    """One AIRFLOW_HOME, and the process that runs DAGs in it.

    :param home: an empty directory
    :param database: a migrated SQLite database, copied for each run
    """

    def __init__(self, home: Path, database: Path) -> None:
        self.home = home
        self._template = database
        self._num_runs = 0
        self._socket = Path(tempfile.mkdtemp(prefix="airflow-")) / "worker"  # a socket's path must be short
        self._worker: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._worker:
            self._worker.kill()
            self._worker.communicate()
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
        """`dag.test()` a DAG in a dags folder, a database and a process of its own.

        :param source: Python; common indentation is taken away
        :param env: for the run's process, AIRFLOW__… and AIRFLOW_CONN_… among them
        """
        request = self._prepare("test", source, dag_id, env)
        date = (logical_date or datetime.now(UTC)).isoformat()
        return self._send(request | {"conf": dict(conf or {}), "logical_date": date})

    def resume(self, run: DagProcess) -> DagProcess:
        """Go on with a run whose process was killed, in a new process on the same database.

        A task that was deferred goes on in the same try, as when a triggerer is restarted; others are tried again.
        """
        return self._send(run.request | {"action": "resume"})

    def inspect(self, run: DagProcess) -> RunOutcome:
        """The run as its database has it; for a process that was killed."""
        return self._send(run.request | {"action": "inspect"}).wait()

    def run_python(self, source: str, env: Mapping[str, str] | None = None) -> Any:
        """Execute Python in an Airflow process, and return what it leaves in `result`."""
        request = self._prepare("python", source, "script", env)
        return self._send(request | {"source": textwrap.dedent(source)}).read_answer()["result"]

    def _prepare(self, action: str, source: str, name: str, env: Mapping[str, str] | None) -> dict[str, Any]:
        """The files of a new run, and what to ask the worker for."""
        self._num_runs += 1
        directory = self.home / f"run-{self._num_runs}"
        dag_file = directory / "dags" / f"{name}.py"
        dag_file.parent.mkdir(parents=True)
        dag_file.write_text(textwrap.dedent(source))
        return {
            "action": action,
            "dag_file": str(dag_file),
            "dag_id": name,
            "database": str(shutil.copy(self._template, directory / "airflow.db")),
            "log": str(directory / "log.txt"),
            "env": dict(env or {}),
        }

    def _send(self, request: dict[str, Any]) -> DagProcess:
        self._ensure_worker()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._socket))
        return DagProcess(request, connection)

    def _ensure_worker(self) -> None:
        if self._worker and self._worker.poll() is None:
            return
        log = self.home / "worker.log"
        with log.open("w") as errors:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "tests.kube.airflow_worker", str(self._socket)],
                env=worker_env(self.home, self._template),
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._worker.stdout is not None
        while (line := self._worker.stdout.readline()) != "ready\n":
            if not line:
                raise RuntimeError(f"Airflow could not be imported:\n{log.read_text()[-3000:]}")


def worker_env(home: Path, database: Path) -> dict[str, str]:
    """The environment of an Airflow that knows nothing of the machine's own."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "KUBE"))}
    return (
        inherited
        | {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "0",  # a retry is part of the run, and not five minutes away
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{database}",
            "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
            "AIRFLOW__WORKERS__API_RETRY_WAIT_MIN": "0.05",  # KubernetesPodOperator's back-off after API errors
            "AIRFLOW__WORKERS__API_RETRY_WAIT_MAX": "0.2",
            "NO_COLOR": "1",
            "PYTHONPATH": str(_ROOT),
        }
    )


def migrate_database(home: Path) -> Path:
    """A migrated SQLite database in `home`; takes five seconds."""
    home.mkdir(parents=True)
    database = home / "airflow.db"
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    subprocess.run(
        command, env=worker_env(home, database), check=True, capture_output=True, timeout=_IMPORT_WITHIN_S
    )
    return database
