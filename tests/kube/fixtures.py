"""Fixtures for tests that need a cluster or an Airflow: `kube` and `airflow`."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube.airflow_env import AirflowEnv, migrate_database
from tests.kube.server import KubeServer

TRAINER_IMAGE = "sft-trainer:test"
IMAGES: dict[str, list[str]] = {
    "busybox": [],
    TRAINER_IMAGE: [sys.executable, "-P", "-m", "trainer"],
}


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[KubeServer]:
    """A fresh cluster. Volumes may be mounted under tmp_path/mnt; its kubeconfig is tmp_path/kubeconfig."""
    mounts = tmp_path / "mnt"
    mounts.mkdir()
    coverage = {key: value for key, value in os.environ.items() if key.startswith("COVERAGE_")}
    with KubeServer(
        home=tmp_path / "cluster", images=IMAGES, mount_roots=[mounts], base_env=coverage
    ) as server:
        server.write_kubeconfig(tmp_path / "kubeconfig")
        yield server


@pytest.fixture(scope="session")
def airflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database, made once for all of pytest-xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    home = shared / "airflow-template"
    with (shared / "airflow-template.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return home / "airflow.db" if home.exists() else migrate_database(home)


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory, airflow_database: Path) -> Iterator[AirflowEnv]:
    """Runs DAGs; see tests/kube/airflow_env.py."""
    with AirflowEnv(tmp_path_factory.mktemp("airflow"), airflow_database) as env:
        yield env
