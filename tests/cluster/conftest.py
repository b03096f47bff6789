"""`make cluster-test` with a KUBECONFIG; without one these tests are skipped."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster
    from tests.kube.airflow_env import AirflowEnv


@pytest.fixture(scope="session")
def cluster(airflow: AirflowEnv) -> Iterator[Cluster]:
    """A namespace on the cluster of KUBECONFIG, with model and data on a claim; deleted in the end."""
    from tests.cluster.cluster import Cluster

    cluster = Cluster(
        kubeconfig=Path(os.environ["KUBECONFIG"]),
        image=os.environ.get("SFT_TEST_IMAGE", "sft-trainer:test"),
        root=os.environ.get("SFT_TEST_ROOT", "/sft"),
        namespace=f"sft-test-{secrets.token_hex(3)}",
        airflow=airflow,
    )
    try:
        cluster.furnish()
        yield cluster
    finally:
        cluster.remove()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before any fixture: without a cluster nothing is imported for these tests."""
    if os.environ.get("KUBECONFIG"):
        return
    skip = pytest.mark.skip(
        reason="These tests need a cluster: set KUBECONFIG, and SFT_TEST_IMAGE to an image it can pull."
    )
    for item in items:
        if item.get_closest_marker("cluster"):
            item.add_marker(skip)
