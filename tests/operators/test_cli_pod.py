import json
import subprocess
import sys
from pathlib import Path

import yaml

from tests.operators.test_pod import SEED_CONFIG

SFT_CONFIG = Path(sys.executable).with_name("sft-config")


def run_pod(config, *arguments):
    return subprocess.run(
        [SFT_CONFIG, "pod", "-", *arguments],
        input=json.dumps(config).encode(),
        capture_output=True,
        check=False,
    )


def test_pod_command_prints_the_pod_and_nothing_else():
    done = run_pod(SEED_CONFIG, "--image", "i:1", "--gpus", "2", "--name", "t", "--volume", "/output=pvc:o")
    pod = yaml.safe_load(done.stdout)
    assert done.returncode == 0, done.stderr.decode()
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "o"}


def test_pod_command_says_how_sizes_came_about_on_stderr():
    done = run_pod(SEED_CONFIG, "--image", "i:1", "--gpus", "2")
    assert "memory is 41Gi/82Gi: at least 25.1 GiB" in done.stderr.decode()


def test_pod_command_refuses_a_wrong_config_with_64():
    done = run_pod({**SEED_CONFIG, "learning_rte": 1}, "--image", "i:1")
    assert (done.returncode, done.stdout) == (64, b"")
    assert "Did you mean 'learning_rate'?" in done.stderr.decode()


def test_pod_command_refuses_a_wrong_volume_with_64():
    done = run_pod(SEED_CONFIG, "--volume", "/data")
    assert done.returncode == 64
    assert "--volume is '/data'. Give PATH=SOURCE" in done.stderr.decode()
