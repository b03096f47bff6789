from pathlib import Path

import pytest

from tests.jobs.desk import JobDesk
from tests.kube.airflow_env import AirflowEnv
from tests.kube.server import KubeServer


@pytest.fixture
def desk(kube: KubeServer, airflow: AirflowEnv, tmp_path: Path) -> JobDesk:
    return JobDesk(kube, airflow, tmp_path / "kubeconfig")
