"""DAGs whose one task is an SFTTrainerOperator on the test cluster, with the stand-in or the real trainer as its pod."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kube.airflow_env import AirflowEnv, DagProcess, RunOutcome
from tests.kube.fixtures import TRAINER_IMAGE
from tests.kube.server import KubeServer

STAND_IN = [sys.executable, str(Path(__file__).with_name("stand_in.py"))]
CONFIG = {
    "model_name_or_path": "/models/m",
    "training_data_path": "/data/input/train.jsonl",
    "output_dir": "/data/output/run",
    "dataset_text_field": "output",
    "response_template": "\n### Label:",
}
MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])

_SOURCE = """
from datetime import datetime, timedelta, timezone
from airflow.providers.common.compat.sdk import DAG, Asset
from airflow_provider_sft.operators import SFTTrainerOperator

class TestOperator(SFTTrainerOperator):
    # The test cluster mounts under its own directories alone.
    CONFIG_DIRECTORY = {config_directory!r}
    quota_pause_s = 0.5

with DAG("tune_dag", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
    TestOperator(task_id="tune", {parameters})
"""


_LOCAL_SOURCE = """
from datetime import datetime, timezone
from airflow.providers.common.compat.sdk import DAG
from airflow_provider_sft.operators import LocalSFTTrainerOperator

with DAG("tune_dag", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
    LocalSFTTrainerOperator(task_id="tune", {parameters})
"""
TRAINER_ENV = {"env_vars": {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}}


@dataclass
class Desk:
    """Runs the operator through Airflow against the test cluster."""

    kube: KubeServer
    airflow: AirflowEnv
    kubeconfig: Path

    def start(self, **parameters: Any) -> DagProcess:
        env = {"AIRFLOW__LOGGING__LOGGING_LEVEL": parameters.pop("log_level", "INFO"), **self.env}
        timeout = parameters.pop("execution_timeout_s", None)
        texts = [f"{key}={value!r}" for key, value in parameters.items()]
        texts += [f"execution_timeout=timedelta(seconds={timeout})"] if timeout else []
        config_directory = str(self.kubeconfig.parent / "mnt" / "config")
        source = _SOURCE.format(parameters=", ".join(texts), config_directory=config_directory)
        return self.airflow.start_dag(source, "tune_dag", env=env)

    @property
    def env(self) -> dict[str, str]:
        extra = {"kube_config_path": str(self.kubeconfig), "namespace": "default"}
        connection = json.dumps({"conn_type": "kubernetes", "extra": extra})
        return {"AIRFLOW_CONN_KUBERNETES_DEFAULT": connection}

    @property
    def counts(self) -> tuple[int, int]:
        """Pods ever made, and trainings ever started."""
        return len(self.kube.created_pods), len(self.kube.starts)

    def exit_codes(self) -> list[int]:
        """Of every training that ended and could be seen to, in order of creation."""
        names = [pod["metadata"]["name"] for pod in self.kube.created_pods]
        ends = [_exit_code(self.kube.pod_history(name)) for name in names]
        return [code for code in ends if code is not None]

    def core(self) -> Any:
        from kubernetes import client, config

        return client.CoreV1Api(config.new_client_from_config(str(self.kubeconfig)))

    def config_maps(self) -> list[Any]:
        items: list[Any] = self.core().list_namespaced_config_map("default").items
        return items

    def stand_in(self, *, deferrable: bool, config: Any = CONFIG, **parameters: Any) -> DagProcess:
        """:param parameters: those of STAND_IN_… in lower case, the rest the operator's"""
        env_vars = {
            key.upper(): str(parameters.pop(key)) for key in list(parameters) if key.startswith("stand_in_")
        }
        defaults: dict[str, Any] = {
            "image": "busybox",
            "cmds": STAND_IN,
            "gpus": 0,
            "poll_interval": 0.2,
            "termination_grace_period": 5,
            "retries": 0,
            "retry_delay": 0.1,
        }
        env_vars = {**parameters.pop("env_vars", {}), **env_vars}
        return self.start(
            deferrable=deferrable, config=config, env_vars=env_vars, **{**defaults, **parameters}
        )

    def trainer(self, config: dict[str, Any], *, deferrable: bool, **parameters: Any) -> DagProcess:
        env_vars = {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(self.kubeconfig.parent / "hf"),
        }
        defaults = {
            "image": TRAINER_IMAGE,
            "gpus": 0,
            "poll_interval": 0.5,
            "retries": 0,
            "env_vars": env_vars,
        }
        return self.start(deferrable=deferrable, config=config, **{**defaults, **parameters})

    def local(self, config: dict[str, Any], **parameters: Any) -> DagProcess:
        texts = [f"{key}={value!r}" for key, value in {"config": config, **TRAINER_ENV, **parameters}.items()]
        return self.airflow.start_dag(_LOCAL_SOURCE.format(parameters=", ".join(texts)), "tune_dag", env={})

    def map_local(self, configs: list[dict[str, Any]]) -> DagProcess:
        source = _LOCAL_SOURCE.replace("Operator(task_id", "Operator.partial(task_id")
        parameters = f"env_vars={TRAINER_ENV['env_vars']!r}).expand(config={configs!r}"
        return self.airflow.start_dag(source.format(parameters=parameters), "tune_dag", env={})


def _exit_code(history: list[dict[str, Any]]) -> int | None:
    for pod in reversed(history):
        for status in pod.get("status", {}).get("containerStatuses") or []:
            if code := (status["state"].get("terminated") or {}).get("exitCode"):
                return int(code)
    return None


def tune(run: DagProcess) -> tuple[RunOutcome, Any]:
    outcome = run.wait()
    return outcome, outcome.task("tune")
