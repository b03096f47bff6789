"""Fixtures for tests that need a cluster or an Airflow, in every folder: `kube` and `airflow`.

The server and its client library are imported when a test asks for them: most tests do not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from tests.kube.airflow_env import AirflowEnv
    from tests.kube.server import KubeServer

TRAINER_IMAGE = "sft-trainer:test"
IMAGES: dict[str, list[str]] = {
    "busybox": [],
    TRAINER_IMAGE: [sys.executable, "-P", "-m", "trainer"],
}


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[KubeServer]:
    """A fresh cluster. Volumes may be mounted under tmp_path/mnt; its kubeconfig is tmp_path/kubeconfig."""
    from tests.kube.server import KubeServer

    mounts = tmp_path / "mnt"
    mounts.mkdir()
    coverage = {key: value for key, value in os.environ.items() if key.startswith("COVERAGE_")}
    with KubeServer(
        home=tmp_path / "cluster", images=IMAGES, mount_roots=[mounts], base_env=coverage
    ) as server:
        server.write_kubeconfig(tmp_path / "kubeconfig")
        yield server


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory, shared_dir: Path) -> Iterator[AirflowEnv]:
    """Runs DAGs; see tests/kube/airflow_env.py. Its database is migrated once for all of pytest-xdist's workers."""
    from tests.kube.airflow_env import AirflowEnv, migrate_database

    template = shared_dir / "airflow-template"
    with FileLock(shared_dir / "airflow-template.lock"):
        database = template / "airflow.db" if template.exists() else migrate_database(template)
    with AirflowEnv(tmp_path_factory.mktemp("airflow"), database) as env:
        yield env
