"""Which trackers a run asked for, what they need, and the environment their clients read. Stdlib only."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.settings import Settings
from airflow_provider_sft.contract.trackers import INTEGRATIONS, experiment_metadata, reported_to
from airflow_provider_sft.contract.wording import show
from trainer.files import parse_object, read_json

_ALWAYS_ON = "file_logger"
# MLflow's client would try for four minutes before it says that a server is gone.
_MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def chosen_trackers(values: Mapping[str, Any]) -> list[str]:
    """By name, besides the file logger: `trackers`, then `report_to`."""
    names = [name for name in values.get("trackers") or [] if name != _ALWAYS_ON]
    return list(dict.fromkeys([*names, *_report_to(values)]))


def find_tracker_mistakes(values: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each tracker that has nowhere to write to, or whose package is missing."""
    chosen = chosen_trackers(values)
    if "mlflow" in chosen and not mlflow_uri(values, environ):
        yield (
            "Config key 'mlflow_tracking_uri' is missing, and trackers has 'mlflow'. Add the server's address, for "
            'example "mlflow_tracking_uri": "http://mlflow:5000", or a directory.'
        )
    yield from _find_missing_integrations(values)


def _find_missing_integrations(values: Mapping[str, Any]) -> Iterator[str]:
    for name in _report_to(values):
        if not _is_installed(INTEGRATIONS[name]):
            yield (
                f"Config key 'report_to' is {show(name)}, which needs the module {INTEGRATIONS[name]!r}, and it is not "
                f"installed. Install it, or change the key."
            )


def mlflow_uri(values: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    return values.get("mlflow_tracking_uri") or environ.get("MLFLOW_TRACKING_URI")


def tracker_file(settings: Settings, output_dir: Path, name: str) -> Path:
    """Where the run is named for those who look for it later: `mlflow_tracker.json`."""
    return Path(settings.values.get("run_uri_export_path") or output_dir) / f"{name}_tracker.json"


def find_tracker_url(settings: Settings, output_dir: Path) -> str | None:
    """The page of this run on a tracker's server, where there is one."""
    for name in chosen_trackers(settings.values):
        naming = read_json(tracker_file(settings, output_dir, name)) or {}
        for key in ("run_uri", "task_uri"):
            if str(naming.get(key, "")).startswith(("http://", "https://")):
                return str(naming[key])
    return None


def tracker_environment(settings: Settings, environ: Mapping[str, str], output_dir: Path) -> dict[str, str]:
    """What the ranks need besides `environ`, for clients that read their settings from the environment.

    A retry goes on in the MLflow run of the attempt before it.
    """
    values, chosen = settings.values, chosen_trackers(settings.values)
    env: dict[str, str] = {}
    if "tensorboard" in chosen:
        env["TENSORBOARD_LOGGING_DIR"] = str(values.get("logging_dir") or output_dir / "runs")
    if "mlflow" in chosen:
        env |= _mlflow_environment(settings, environ, output_dir)
    if "clearml" in chosen:
        env["CLEARML_PROJECT"] = str(values.get("clearml_project") or values.get("experiment"))
        env["CLEARML_TASK"] = str(values.get("clearml_task") or values.get("experiment"))
        env["CLEARML_LOG_MODEL"] = environ.get("CLEARML_LOG_MODEL", "FALSE")
    return env


def _mlflow_environment(settings: Settings, environ: Mapping[str, str], output_dir: Path) -> dict[str, str]:
    values = settings.values
    uri = str(mlflow_uri(values, environ))
    env = {name: environ.get(name, default) for name, default in _MLFLOW_PATIENCE.items()}
    env["MLFLOW_TRACKING_URI"] = uri
    env["MLFLOW_EXPERIMENT_NAME"] = str(
        values.get("mlflow_experiment") or values.get("experiment") or "airflow-provider-sft"
    )
    if is_directory(uri):
        env["MLFLOW_ALLOW_FILE_STORE"] = "true"  # without it, MLflow 3.7 and later refuse a directory
    if metadata := experiment_metadata(values):
        tags = {**_read_tags(environ), **metadata}
        env["MLFLOW_TAGS"] = json.dumps(tags)
    earlier = read_json(tracker_file(settings, output_dir, "mlflow")) or {}
    if (
        earlier.get("tracking_uri") == uri
        and str(earlier.get("run_id", "")).isalnum()
        and "MLFLOW_RUN_ID" not in environ
    ):
        # Its parameters are there and cannot be changed.
        env |= {"MLFLOW_RUN_ID": str(earlier["run_id"]), "MLFLOW_MAX_LOG_PARAMS": "0"}
    return env


def _read_tags(environ: Mapping[str, str]) -> dict[str, Any]:
    """:raises ConfigError: not a JSON object"""
    text = environ.get("MLFLOW_TAGS") or "{}"
    if (tags := parse_object(text.encode())) is None:
        raise ConfigError(f"MLFLOW_TAGS is {text!r}, which is not a JSON object. Correct it, or unset it.")
    return tags


def is_directory(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file:")


def _report_to(values: Mapping[str, Any]) -> list[str]:
    names = reported_to(values)
    if "all" in names:
        return [name for name, module in INTEGRATIONS.items() if _is_installed(module)]
    return [name for name in names if name != "none"]


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
