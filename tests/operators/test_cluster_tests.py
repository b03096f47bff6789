"""The tests for real clusters are tests of real code too: a row of them runs on the server of tests/kube."""

import os
import subprocess
import sys
from pathlib import Path

from tests.kube.fixtures import TRAINER_IMAGE

ROOT = Path(__file__).parents[2]


def run_rows(*options, **env):
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "cluster", "tests/cluster", *options]
    inherited = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
    return subprocess.run(
        command, cwd=ROOT, env={**inherited, **env}, capture_output=True, text=True, check=False
    )


def test_cluster_tests_pass_on_the_test_server(kube, tmp_path):
    # What is not served by HTTP alone: a path that pods and this machine share.
    env = {"SFT_TEST_ROOT": str(tmp_path / "mnt"), "SFT_TEST_IMAGE": TRAINER_IMAGE}
    done = run_rows("-k", "missing_secret and deferrable", KUBECONFIG=str(tmp_path / "kubeconfig"), **env)
    assert "1 passed" in done.stdout, done.stdout[-4000:]


def test_cluster_tests_are_skipped_with_a_sentence_where_there_is_no_cluster():
    done = run_rows()
    assert done.returncode == 0
    assert (
        "These tests need a cluster: set KUBECONFIG, and SFT_TEST_IMAGE to an image it can pull."
        in done.stdout
    )
