"""What a config says of trackers, and what is wrong with it before their packages are looked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_provider_sft.contract.wording import show, suggest

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


def find_tracker_contradictions(config: Mapping[str, Any]) -> Iterator[str]:
    """A sentence each."""
    if "aim" in [*(config.get("trackers") or []), *reported_to(config)] and aim_repo(config) is None:
        yield (
            "Config key 'aim_repo' is missing, and trackers has 'aim'. Add a directory, for example "
            '"aim_repo": "/data/output/aim", or aim_remote_server_ip and aim_remote_server_port.'
        )
    for name in reported_to(config):
        if name not in (*INTEGRATIONS, "all", "none"):
            near = suggest(name, INTEGRATIONS)
            hint = (
                f"Did you mean {near!r}?" if near else f"It takes {', '.join(INTEGRATIONS)}, 'all' or 'none'."
            )
            yield f"Config key 'report_to' is {show(name)}, which is not an integration of transformers. {hint}"
    if experiment_metadata(config) is None:
        shown = show(config["exp_metadata"])
        yield f"Config key 'exp_metadata' is {shown}, which is no JSON object. Give an object of keys and values."


def reported_to(config: Mapping[str, Any]) -> list[str]:
    given = config.get("report_to") or []
    return [given] if isinstance(given, str) else list(given)


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
