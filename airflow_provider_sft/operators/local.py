"""Tune a model in a process of the worker: a laptop, CI, the quickstart, or a worker that has the GPUs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_sft.config_field import PATH_KEYS, ConfigField
from airflow_provider_sft.contract.codec import Config, dump_config
from airflow_provider_sft.contract.names import (
    CONFIG_ENV_VAR,
    CONFIG_PATH_ENV_VAR,
    RUN_ID_ENV_VAR,
    TERMINATION_LOG_ENV_VAR,
)
from airflow_provider_sft.contract.outcome import Result
from airflow_provider_sft.failures import (
    InterruptedFailure,
    LaunchFailure,
    clean_result,
    describe_position,
    failure_of_exit,
)
from airflow_provider_sft.links import ModelLink, ReportLink, TrackerLink
from airflow_provider_sft.metrics import task_tags
from airflow_provider_sft.process_output import follow_lines
from airflow_provider_sft.progress_report import ProgressReport
from airflow_provider_sft.result_report import announce_result, announcing
from airflow_provider_sft.task_identity import build_run_id

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

_PR_SET_PDEATHSIG = 1
_SIGNAL_BASE = 128


class LocalSFTTrainerOperator(ConfigField, BaseOperator):
    """Tunes a language model with a trainer process on the worker.

    The same config, outcome, result and progress as :class:`SFTTrainerOperator`, without a cluster.

    :param config: a dict, JSON text, the path of a JSON file beside the DAG file, or an XComArg of one of these.
        Its values are data: only those of `templated_config_keys` are templated
    :param env_vars: environment variables of the trainer, beside the worker's own (templated)
    :param templated_config_keys: by default those that hold paths
    :param extra_config_keys: keys that this version does not know and the trainer does
    :param allow_remote_code: lets Python code that comes with the model run, when the config's trust_remote_code asks
    :param artifacts_url: where the files are served, such as `https://files.example.com/{path}`: it makes the links
        to report and model (templated)
    :param termination_grace_period_s: what the trainer has to save when the task is killed; then it is killed too
    """

    template_fields: Sequence[str] = ("config", "env_vars", "artifacts_url")
    template_fields_renderers: ClassVar[dict[str, str]] = {"config": "json", "env_vars": "json"}
    operator_extra_links = (ReportLink(), ModelLink(), TrackerLink())
    found_links: Mapping[str, str] = MappingProxyType({})
    ui_color = "#e8e0f7"

    def __init__(
        self,
        *,
        config: Mapping[str, Any] | str | os.PathLike[str] | Any,
        env_vars: Mapping[str, str] | None = None,
        templated_config_keys: Sequence[str] = PATH_KEYS,
        extra_config_keys: Sequence[str] = (),
        allow_remote_code: bool = False,
        artifacts_url: str | None = None,
        termination_grace_period_s: float = 120,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.env_vars = env_vars
        self.templated_config_keys = templated_config_keys
        self.extra_config_keys = extra_config_keys
        self.allow_remote_code = allow_remote_code
        self.artifacts_url = artifacts_url
        self.termination_grace_period_s = termination_grace_period_s
        self._process: subprocess.Popen[bytes] | None = None
        self._kill_at_s: float | None = None  # by time.monotonic(), once the task was told to end
        self._is_told = False  # the trainer was: a second SIGTERM would end it at once

    @property
    def command(self) -> list[str]:
        # -P: a user's own trainer.py in the working directory must not shadow ours.
        return [sys.executable, "-P", "-m", "trainer"]

    def execute(self, context: Context) -> Result:
        with announcing(self, context):
            return self._tune(self.check_config(), context)

    def on_kill(self) -> None:
        """The trainer gets SIGTERM and saves; `execute` waits for it and fails the task. Airflow may call it twice."""
        if self._kill_at_s is None:
            self._kill_at_s = time.monotonic() + self.termination_grace_period_s
        if self._process and not self._is_told:
            self._is_told = True
            self._process.terminate()

    def _tune(self, config: Config, context: Context) -> Result:
        store = context.get("task_state_store")
        report = ProgressReport(self.log, store, tags=task_tags(context))
        with tempfile.TemporaryDirectory(prefix="sft-") as scratch:
            exit_code = self._run(config, build_run_id(context), Path(scratch), report)
            result = _read_result(Path(scratch))
        report.store()
        return self._conclude(context, exit_code, result, report)

    def _run(self, config: Config, run_id: str, scratch: Path, report: ProgressReport) -> int:
        self._process = _start(self.command, self._environment(config, run_id, scratch))
        try:
            if self._kill_at_s is not None:  # told while it was being started
                self.on_kill()
            self._follow(self._process, report)
        except BaseException:  # a time-out, or Airflow 2's AirflowTaskTerminated
            self.on_kill()
            self._follow(self._process, report)
            raise
        finally:
            _kill_group(self._process)
            return_code = self._process.wait()
        return return_code if return_code >= 0 else _SIGNAL_BASE - return_code

    def _follow(self, process: subprocess.Popen[bytes], report: ProgressReport) -> None:
        for line in follow_lines(process):
            if line is not None:
                report.take(line)
            if self._kill_at_s is not None and time.monotonic() > self._kill_at_s:
                self.log.warning(
                    "The trainer did not end in %s s and is killed.", self.termination_grace_period_s
                )
                return

    def _environment(self, config: Config, run_id: str, scratch: Path) -> dict[str, str]:
        config_path = scratch / "config.json"
        config_path.write_text(dump_config(config), encoding="utf-8")
        # The worker's secrets (database, Fernet key) are Airflow's; none is the trainer's.
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW__", "_AIRFLOW__"))
        }
        inherited.pop(CONFIG_ENV_VAR, None)
        return {
            **inherited,
            **self.leave_variable,
            **(self.env_vars or {}),
            CONFIG_PATH_ENV_VAR: str(config_path),
            RUN_ID_ENV_VAR: run_id,
            TERMINATION_LOG_ENV_VAR: str(_termination_log(scratch)),
        }

    def _conclude(
        self, context: Context, exit_code: int, result: Result | None, report: ProgressReport
    ) -> Result:
        if self._kill_at_s is not None:  # whatever the trainer managed to do: a killed task is no success
            position = describe_position(result, report.last)
            raise InterruptedFailure(
                f"The task was told to end and the trainer with it (exit code {exit_code}). {position} "
                "The retry resumes.",
                result=result,
            )
        if failure := failure_of_exit(exit_code, result, progress=report.last):
            raise failure
        assert result is not None  # noqa: S101  # failure_of_exit saw to it
        announce_result(self, context, result)
        return result


def _start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """In a session of its own: when Airflow kills the task's process group, the trainer still gets to save."""
    libc = ctypes.CDLL(None)
    try:
        return subprocess.Popen(  # noqa: S603  # our own command line
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A worker that is killed outright takes the trainer along, which saves; the retry resumes. Not SIGTERM: to a
            # trainer that on_kill has told already it would be the second, which ends at once and saves nothing.
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGHUP),  # noqa: PLW1509
        )
    except OSError as error:
        raise LaunchFailure(f"The trainer cannot be started: {error}. Check {command[0]}.") from error


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Whatever the trainer left running: a rank that outlived its parent."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _termination_log(scratch: Path) -> Path:
    return scratch / "termination-log"


def _read_result(scratch: Path) -> Result | None:
    path = _termination_log(scratch)
    return clean_result(path.read_text(errors="replace")) if path.exists() else None
