"""Which trackers a run asked for, what they need, and the environment their clients read. Stdlib only."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.settings import Settings
from airflow_provider_sft.contract.wording import show, suggest
from trainer.files import read_json

# transformers' own integrations, which `report_to` names → the module that each needs.
INTEGRATIONS = {
    "azure_ml": "azureml",
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet_ml",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "flyte": "flytekit",
    "kubeflow": "kubeflow",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
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
    if "aim" in chosen and aim_repo(values) is None:
        yield (
            "Config key 'aim_repo' is missing, and trackers has 'aim'. Add a directory, for example "
            '"aim_repo": "/data/output/aim", or aim_remote_server_ip and aim_remote_server_port.'
        )
    yield from _find_unknown_integrations(values)
    if experiment_metadata(values) is None:
        shown = show(values["exp_metadata"])
        yield f"Config key 'exp_metadata' is {shown}, which is no JSON object. Give an object of keys and values."


def _find_unknown_integrations(values: Mapping[str, Any]) -> Iterator[str]:
    for name in _report_to(values):
        if name not in INTEGRATIONS:
            near = suggest(name, INTEGRATIONS)
            hint = (
                f"Did you mean {near!r}?" if near else f"It takes {', '.join(INTEGRATIONS)}, 'all' or 'none'."
            )
            yield f"Config key 'report_to' is {show(name)}, which is no integration of transformers. {hint}"
        elif not _is_installed(INTEGRATIONS[name]):
            yield (
                f"Config key 'report_to' is {show(name)}, which needs the module {INTEGRATIONS[name]!r}, and it is not "
                f"installed. Install it, or change the key."
            )


def mlflow_uri(values: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    return values.get("mlflow_tracking_uri") or environ.get("MLFLOW_TRACKING_URI")


def aim_repo(values: Mapping[str, Any]) -> str | None:
    """A directory or an `aim://` address; the server's address wins, as in fms-hf-tuning."""
    host, port = values.get("aim_remote_server_ip"), values.get("aim_remote_server_port")
    if host and port:
        return f"aim://{host}:{port}/"
    return values.get("aim_url") or values.get("aim_repo")


def experiment_metadata(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """`exp_metadata` as an object, empty without one; None when it is something else."""
    given = values.get("exp_metadata") or {}
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    return dict(given) if isinstance(given, Mapping) else None


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
        tags = {**json.loads(environ.get("MLFLOW_TAGS", "{}")), **metadata}
        env["MLFLOW_TAGS"] = json.dumps(tags)
    earlier = read_json(tracker_file(settings, output_dir, "mlflow")) or {}
    if earlier.get("tracking_uri") == uri and "run_id" in earlier and "MLFLOW_RUN_ID" not in environ:
        # Its parameters are there and cannot be changed.
        env |= {"MLFLOW_RUN_ID": str(earlier["run_id"]), "MLFLOW_MAX_LOG_PARAMS": "0"}
    return env


def is_directory(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file:")


def _report_to(values: Mapping[str, Any]) -> list[str]:
    given = values.get("report_to") or []
    names = [given] if isinstance(given, str) else list(given)
    if "all" in names:
        return [name for name, module in INTEGRATIONS.items() if _is_installed(module)]
    return [name for name in names if name != "none"]


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
