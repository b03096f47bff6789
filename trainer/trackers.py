"""Trackers: transformers' own callbacks for tensorboard, mlflow and clearml, aim's own for aim. None of them can end
a run or fail in silence: one that fails is dropped, with a sentence in the log and in the result.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partialmethod
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK, MLflowCallback

from airflow_provider_sft.contract.secrets import remove_user_info
from airflow_provider_sft.contract.settings import Settings
from airflow_provider_sft.contract.trackers import aim_repo, experiment_metadata
from trainer.files import write_json
from trainer.tracker_settings import (
    chosen_trackers,
    mlflow_uri,
    tracker_file,
)

log = logging.getLogger("trainer")

_CONNECT_TIMEOUT_S = 5
_DEFAULT_PORTS = {"http": 80, "https": 443, "aim": 53800}
_MAX_REASON_CHARS = 200


def build_trackers(
    settings: Settings,
    output_dir: Path,
    *,
    say: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
) -> list[TrainerCallback]:
    """A callback for each tracker that the config asks for; the file logger needs none. For rank 0 alone.

    :param say: hears of each tracker that did not get everything, a sentence each
    :param environ: as `tracker_environment` made it
    """
    trackers: list[TrainerCallback] = []
    for name in chosen_trackers(settings.values):
        if address := _unreachable(name, settings.values, environ):
            say(f"Tracker {name!r} got nothing: {address} cannot be reached. The run went on without it.")
        else:
            trackers.append(Tracker(name, settings, output_dir, say))
    return trackers


class Tracker(TrainerCallback):
    """One tracker, connected when training begins, and dropped at its first failure."""

    def __init__(self, name: str, settings: Settings, output_dir: Path, say: Callable[[str], None]) -> None:
        self._name = name
        self._settings = settings
        self._file = tracker_file(settings, output_dir, name)
        self._say = say
        self._inner: TrainerCallback | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with self._dropped_on_failure(state), _signals_kept():
            self._inner = _connect(self._name, self._settings)
            self._inner.on_train_begin(args, state, control, **kwargs)
            if self._name in _NAMING:
                metadata = experiment_metadata(self._settings.values) or {}
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._file, _NAMING[self._name](self._inner, metadata))

    def _pass_on(
        self, event: str, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._inner is not None:
            with self._dropped_on_failure(state):
                getattr(self._inner, event)(args, state, control, **kwargs)

    on_log = partialmethod(_pass_on, "on_log")
    on_save = partialmethod(_pass_on, "on_save")
    on_train_end = partialmethod(_pass_on, "on_train_end")

    @contextlib.contextmanager
    def _dropped_on_failure(self, state: TrainerState) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._inner = None
            log.warning("Tracker %r failed.", self._name, exc_info=error)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_REASON_CHARS]
            self._say(
                f"Tracker {self._name!r} got nothing from step {state.global_step} on ({reason}). "
                f"The run went on without it."
            )


class _MLflow(MLflowCallback):
    """Asynchronous logging, transformers' choice, loses metrics without a word when the server goes away."""

    @property
    def _async_log(self) -> bool:
        return False

    @_async_log.setter
    def _async_log(self, _value: bool) -> None:
        """What transformers sets is of no account."""


def _connect(name: str, settings: Settings) -> TrainerCallback:
    if name == "mlflow":
        return _MLflow()
    if name == "clearml":
        _report_from_threads()
    if name != "aim":
        return INTEGRATION_TO_CALLBACK[name]()
    from aim.hugging_face import AimCallback

    experiment = settings.values.get("aim_experiment") or settings.values.get("experiment")
    # Aim reads the terminal by replacing sys.stdout, which is how progress reaches Airflow.
    return AimCallback(repo=aim_repo(settings.values), experiment=experiment, capture_terminal_logs=False)


def _report_from_threads() -> None:
    """ClearML would fork a reporter from this process, whose many threads may hold locks just then: such a child never
    reports, and `Task.close` waits for it without a limit.
    """
    from clearml import Task

    Task._report_subprocess_enabled = False  # noqa: SLF001  # clearml.conf alone could say so, and it is the user's


def _name_mlflow_run(_callback: Any, _metadata: dict[str, Any]) -> dict[str, Any]:
    import mlflow

    run, uri = mlflow.active_run().info, remove_user_info(mlflow.get_tracking_uri())
    host = uri if uri.startswith("http") else "<host_url>"
    return {
        "run_name": run.run_name,
        "run_uri": f"{host.rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}",
        "run_id": run.run_id,
        "tracking_uri": uri,
    }


def _name_aim_run(callback: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    for key, value in metadata.items():
        callback.experiment.set(("experiment_metadata", key), value, strict=False)
    return {"run_hash": str(callback.experiment.hash)}


def _name_clearml_task(_callback: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    from clearml import Task

    task = Task.current_task()
    for key, value in metadata.items():
        task.set_parameter(f"experiment_metadata/{key}", value)
    return {"task_id": task.id, "task_uri": task.get_output_log_web_page()}


def _name_tensorboard_run(callback: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    if metadata:
        callback.tb_writer.add_text("experiment_metadata", json.dumps(metadata, ensure_ascii=False))
    return {"logging_dir": callback.logging_dir}


# How each tracker takes the config's exp_metadata, and what `<tracker>_tracker.json` says of its run.
_NAMING: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    "aim": _name_aim_run,
    "clearml": _name_clearml_task,
    "mlflow": _name_mlflow_run,
    "tensorboard": _name_tensorboard_run,
}


def _unreachable(name: str, values: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    """The address of a tracker's server when nothing listens there; asked first because clients try for minutes."""
    address = {
        "mlflow": mlflow_uri(values, environ),
        "aim": aim_repo(values),
        "clearml": environ.get("CLEARML_API_HOST"),
    }.get(name)
    url = urlsplit(address or "")
    if url.scheme not in _DEFAULT_PORTS or not url.hostname or environ.get(f"{url.scheme}_proxy"):
        return None
    try:
        port = url.port or _DEFAULT_PORTS[url.scheme]
        socket.create_connection((url.hostname, port), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError):
        return f"{url.scheme}://{url.hostname}" + (f":{url.port}" if url.port else "")
    return None


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """ClearML's client takes SIGTERM, with which a run is told to save."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
