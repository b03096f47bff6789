import json
import re
import shlex
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


def test_pod_command_writes_the_config_map_before_the_pod_that_mounts_it():
    done = run_pod(SEED_CONFIG, "--image", "i:1", "--name", "t", "--config-map")
    config_map, pod = yaml.safe_load_all(done.stdout)
    assert json.loads(config_map["data"]["config.json"]) == SEED_CONFIG
    assert pod["spec"]["volumes"][-1]["configMap"]["name"] == config_map["metadata"]["name"] == "t-config"
    assert pod["spec"]["containers"][0]["env"] == [
        {"name": "SFT_TRAINER_CONFIG_JSON_PATH", "value": "/etc/sft-config/config.json"},
        {"name": "SFT_EXPECTED_GPUS", "value": "1"},
    ]


def test_pod_command_writes_a_config_map_for_a_config_that_is_too_long():
    long = {**SEED_CONFIG, "chat_template": "é" * 60_000}
    kinds = [each["kind"] for each in yaml.safe_load_all(run_pod(long, "--image", "i:1").stdout)]
    assert kinds == ["ConfigMap", "Pod"]


def test_pod_command_shows_a_config_map_as_a_person_would_write_it():
    done = run_pod(SEED_CONFIG, "--image", "i:1", "--config-map")
    assert 'config.json: |\n    {\n      "' in done.stdout.decode()


def test_pod_command_keeps_a_name_and_makes_one_up_otherwise():
    named, unnamed = (yaml.safe_load(run_pod(SEED_CONFIG, *name).stdout) for name in (["--name", "t"], []))
    assert named["metadata"]["name"] == "t"
    assert len(unnamed["metadata"]["name"]) > len("tune-")


def test_command_of_the_image_page_prints_the_seeds_pod_corrected():
    page = Path(__file__, "../../../docs/image.md").resolve().read_text()
    command = re.search(r"^sft-config pod config.json (.*?) \| kubectl", page, re.MULTILINE | re.DOTALL)[1]
    config = json.loads(re.search(r"where `config.json` is\n\n```json\n(.*?)```", page, re.DOTALL)[1])
    done = run_pod(config, *shlex.split(command.replace("\\\n", " ")))
    config_map, pod = yaml.safe_load_all(done.stdout)
    container = pod["spec"]["containers"][0]
    assert json.loads(config_map["data"]["config.json"]) == config
    assert container["resources"] == {
        "limits": {"cpu": "10", "memory": "200Gi", "ephemeral-storage": "2Ti", "nvidia.com/gpu": "2"},
        "requests": {"cpu": "5", "memory": "80Gi", "ephemeral-storage": "1600Gi"},
    }
    assert (container["image"], container["imagePullPolicy"]) == ("sft-trainer:mytag", "IfNotPresent")
    assert (pod["spec"]["restartPolicy"], pod["spec"]["terminationGracePeriodSeconds"]) == ("Never", 30)
    claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["spec"]["volumes"]]
    assert claims[:3] == ["model-pvc", "input-pvc", "output-pvc"]
