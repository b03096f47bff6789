from pathlib import Path

import pytest

from tests.kube.airflow_env import AirflowEnv
from tests.kube.server import KubeServer
from tests.operators.cluster import Desk


@pytest.fixture
def desk(kube: KubeServer, airflow: AirflowEnv, tmp_path: Path) -> Desk:
    return Desk(kube, airflow, tmp_path / "kubeconfig")
