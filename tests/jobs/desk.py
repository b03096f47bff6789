"""DAGs whose one task is an SFTJobOperator on the test cluster, with its controllers, and the stand-in as its pods."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.kube.airflow_env import DagProcess
from tests.operators import cluster
from tests.operators.cluster import Desk

ENGINES = pytest.mark.parametrize("engine", ["job", "pytorchjob", "jobset", "trainjob"])
_SOURCE = cluster._SOURCE.replace("SFTTrainerOperator", "SFTJobOperator")


class JobDesk(Desk):
    def start(self, **parameters: Any) -> DagProcess:
        env = {"AIRFLOW__LOGGING__LOGGING_LEVEL": parameters.pop("log_level", "INFO"), **self.env}
        timeout = parameters.pop("execution_timeout_s", None)
        texts = [f"{key}={value!r}" for key, value in parameters.items()]
        texts += [f"execution_timeout=timedelta(seconds={timeout})"] if timeout else []
        source = _SOURCE.format(
            parameters=", ".join(texts), config_directory=str(self.kubeconfig.parent / "mnt" / "config")
        )
        return self.airflow.start_dag(source, "tune_dag", env=env)


def wait_until(condition: Callable[[], Any], timeout_s: float = 30) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError("It did not come to be.")
        time.sleep(0.05)
    return found
