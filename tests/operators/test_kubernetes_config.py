"""C2-C4, C8, C9: the config on its way from Airflow into the pod's process."""

import json
import time
from pathlib import Path

import pytest

from airflow_provider_sft.contract.codec import dump_config
from airflow_provider_sft.contract.names import MAX_ENV_CONFIG_BYTES
from tests.kube import faults
from tests.operators.cluster import CONFIG, MODES, tune


def config_of(size_bytes):
    """Whose JSON has exactly this many bytes."""
    bare = len(dump_config({**CONFIG, "chat_template": ""}).encode())
    config = {**CONFIG, "chat_template": "x" * (size_bytes - bare)}
    assert len(dump_config(config).encode()) == size_bytes
    return config


def arrived(record):
    return [json.loads(line) for line in record.read_text().splitlines()]


@MODES
def test_config_arrives_as_it_is_although_other_keys_are_templated(desk, deferrable, tmp_path):
    config = {
        **CONFIG,
        "output_dir": "/data/{{ run_id }}",
        "response_template": "{{ x }} {# y #} {% z\n答え\n",
        "chat_template": "[1]",
        "learning_rate": "1e-5",
    }
    outcome, task = tune(desk.stand_in(deferrable=deferrable, config=config, stand_in_record=tmp_path / "r"))
    assert task.state == "success", outcome.log
    expected = {**config, "output_dir": f"/data/{outcome.run_id}", "learning_rate": 1e-5}
    assert arrived(tmp_path / "r")[0]["config"] == expected


@MODES
@pytest.mark.parametrize("extra_bytes", [0, 1], ids=["fits", "one-byte-more"])
def test_long_config_arrives_as_variable_or_as_file(desk, deferrable, tmp_path, extra_bytes):
    config = config_of(MAX_ENV_CONFIG_BYTES + extra_bytes)
    outcome, task = tune(desk.stand_in(deferrable=deferrable, config=config, stand_in_record=tmp_path / "r"))
    assert task.state == "success", outcome.log
    record = arrived(tmp_path / "r")[0]
    assert record["config"] == config
    assert ("SFT_TRAINER_CONFIG_JSON_ENV_VAR" in record["env"]) == (extra_bytes == 0)
    assert desk.config_maps() == []


def test_config_map_belongs_to_its_pod_and_goes_with_it(desk):
    run = desk.stand_in(deferrable=False, config=config_of(MAX_ENV_CONFIG_BYTES + 1), stand_in_steps=100)
    pod = desk.kube.wait_for_pod(lambda pod: pod["status"]["phase"] == "Running")
    deadline = time.monotonic() + 30  # a pod may run before it owns its config
    while not (owners := desk.config_maps()[0].metadata.owner_references) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [owner.uid for owner in owners] == [pod["metadata"]["uid"]]
    run.wait()
    assert desk.config_maps() == []


def test_long_config_without_the_right_to_make_config_maps_says_the_other_way(desk):
    desk.kube.inject(faults.Denied(verb="create", resource="configmaps"))
    run = desk.stand_in(deferrable=False, config=config_of(MAX_ENV_CONFIG_BYTES + 1), retries=3)
    outcome, task = tune(run)
    assert task.state == "failed", outcome.log
    assert "Mount the config as a file and set SFT_TRAINER_CONFIG_JSON_PATH" in outcome.log
    assert desk.kube.created_pods == []


@MODES
def test_wrong_config_makes_no_pod(desk, deferrable):
    outcome, task = tune(
        desk.stand_in(deferrable=deferrable, config={**CONFIG, "learning_rte": 1}, retries=3)
    )
    assert task.state == "failed", outcome.log
    assert "Unknown config key 'learning_rte'. Did you mean 'learning_rate'?" in outcome.log
    assert desk.kube.created_pods == []


@MODES
def test_secret_in_the_config_is_refused_and_shown_nowhere(desk, deferrable, tmp_path):
    secret = "hf_" + "Q" * 34
    path = tmp_path / "config.json"  # a DAG file would be in the database as it is
    path.write_text(json.dumps({**CONFIG, "hub_token": secret}))
    run = desk.stand_in(deferrable=deferrable, config=str(path), retries=3)
    outcome, task = tune(run)
    assert (task.state, task.try_number) == ("failed", 1), outcome.log
    # Neither XCom nor rendered fields.
    assert secret.encode() not in Path(run.request["database"]).read_bytes()
    assert "pass it from a Secret as the environment variable HF_TOKEN" in outcome.log
    assert secret not in outcome.log
    assert desk.kube.created_pods == []


def test_secret_reaches_the_trainer_from_a_secret(desk, tmp_path):
    desk.kube.add_secret("hub", {"token": "very-secret"})
    run = desk.stand_in(deferrable=True, secrets={"HF_TOKEN": "hub/token"}, stand_in_record=tmp_path / "r")
    outcome = run.wait()
    assert arrived(tmp_path / "r")[0]["env"]["HF_TOKEN"] == "very-secret"
    assert "very-secret" not in outcome.log
