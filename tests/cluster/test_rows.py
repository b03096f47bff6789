"""The main rows of FAULTS on a real cluster: the operator, its trainer image, a kubelet and a scheduler."""

from __future__ import annotations

import itertools
import json

import pytest

from tests.cluster.cluster import PATIENCE_S, Cluster
from tests.operators.cluster import MODES, Desk, tune

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3 * PATIENCE_S)]
# What is the same wherever the model is trained; losses differ in their last digits between processors.
SAME = ("status", "exit_code", "steps", "model_kind", "distributed", "world_size", "attempt")
LOSSES = ("train_loss_first", "train_loss_last")
HOG = "import time; print('filling memory', flush=True); time.sleep(2); text = b'x' * 2**30; time.sleep(30)"

_numbers = itertools.count()


def config_on(cluster: Cluster, **keys):
    """Eight LoRA steps into a directory of their own."""
    return {
        "model_name_or_path": f"{cluster.data}/model",
        "training_data_path": f"{cluster.data}/tweets.jsonl",
        "output_dir": f"{cluster.data}/out-{next(_numbers)}",
        "dataset_text_field": "output",
        "response_template": "\n### Label:",
        "peft_method": "lora",
        "torch_dtype": "float32",
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "save_strategy": "no",
        "generate_samples": 0,
        "report": False,
        **keys,
    }


def start_long(cluster: Cluster, **parameters):
    """A training of minutes that has begun."""
    run = cluster.start(config_on(cluster, max_steps=1000), **parameters)
    run.wait_for_log(r"step 5/1000 ", PATIENCE_S)
    return run


def finish(run):
    outcome = run.wait(PATIENCE_S)
    return outcome, outcome.task("tune")


def assert_resumed(outcome, task):
    assert (task.state, task.try_number) == ("success", 2), outcome.log[-6000:]
    result = task.xcoms["return_value"]
    assert (result["steps"], result["attempt"]) == (1000, 2)
    assert result["resumed_from_step"] >= 5


@pytest.fixture
def local_result(airflow, tiny_model_dir, tweets, tmp_path, cluster):
    """What the local operator makes of the same config."""
    here = {"model_name_or_path": str(tiny_model_dir), "training_data_path": str(tweets)}
    config = config_on(cluster, **here, output_dir=str(tmp_path / "out"))
    outcome, task = tune(Desk(None, airflow, tmp_path).local(config))
    assert task.state == "success", outcome.log[-6000:]
    return task.xcoms["return_value"]


@MODES
def test_training_ends_with_the_local_operators_result(cluster, local_result, deferrable):
    outcome, task = finish(cluster.start(config_on(cluster), deferrable=deferrable))
    assert task.state == "success", outcome.log[-6000:]
    result = task.xcoms["return_value"]
    assert result.keys() == local_result.keys()
    assert {key: result[key] for key in SAME} == {key: local_result[key] for key in SAME}
    assert [result[key] for key in LOSSES] == pytest.approx([local_result[key] for key in LOSSES], rel=0.05)
    assert len(cluster.pods_of(outcome)) == 1
    assert [outcome.log.count(f"step {step}/8 ") for step in range(1, 9)] == [1] * 8


@MODES
def test_config_that_only_the_trainer_finds_wrong_is_not_retried(cluster, deferrable):
    config = config_on(cluster, no_such_key=1)
    run = cluster.start(config, deferrable=deferrable, extra_config_keys=["no_such_key"], retries=3)
    outcome, task = finish(run)
    assert (task.state, task.try_number) == ("failed", 1), outcome.log[-6000:]
    assert "Unknown config key 'no_such_key'." in outcome.log
    [pod] = cluster.pods_of(outcome)
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 64


def test_sync_task_told_to_end_saves_and_its_retry_resumes(cluster):
    run = start_long(cluster, deferrable=False, retries=1)
    run.terminate()
    assert_resumed(*finish(run))


@MODES
def test_pod_that_is_evicted_saves_and_the_retry_resumes(cluster, deferrable):
    run = start_long(cluster, deferrable=deferrable, retries=1)
    cluster.evict(cluster.running_pod())
    assert_resumed(*finish(run))


@MODES
def test_pod_deleted_mid_run_saves_and_the_retry_resumes(cluster, deferrable):
    run = start_long(cluster, deferrable=deferrable, retries=1)
    cluster.delete(cluster.running_pod())
    assert_resumed(*finish(run))


@MODES
def test_worker_killed_mid_run_is_followed_by_the_retry(cluster, deferrable):
    run = start_long(cluster, deferrable=deferrable, retries=1)
    run.kill()
    outcome, task = finish(cluster.airflow.resume(run))
    assert task.state == "success", outcome.log[-6000:]
    assert task.xcoms["return_value"]["attempt"] == 1
    assert len(cluster.pods_of(outcome)) == 1


@MODES
def test_container_over_its_memory_limit_is_named_and_not_retried(cluster, deferrable):
    hog = {"cmds": ["python3", "-c", HOG], "memory": "128Mi"}
    outcome, task = finish(cluster.start(config_on(cluster), deferrable=deferrable, retries=3, **hog))
    assert (task.state, task.try_number) == ("failed", 1), outcome.log[-6000:]
    assert "reached its memory limit of 128Mi and was killed (OOMKilled)." in outcome.log
    assert len(cluster.pods_of(outcome)) == 1


@MODES
def test_pod_that_no_node_can_take_waits_until_one_can(cluster, deferrable):
    resource = f"sft.test/gpu-{'deferrable' if deferrable else 'sync'}"
    no_driver = {"SFT_EXPECTED_GPUS": "0"}
    run = cluster.start(
        config_on(cluster), deferrable=deferrable, gpus=1, gpu_resource=resource, env_vars=no_driver
    )
    try:
        run.wait_for_log(rf"waits: Unschedulable: .*Insufficient {resource}", PATIENCE_S)
        cluster.advertise(resource, 1)
        outcome, task = finish(run)
    finally:
        cluster.advertise(resource, None)
    assert task.state == "success", outcome.log[-6000:]
    assert len(cluster.pods_of(outcome)) == 1


@MODES
def test_missing_secret_fails_fast_and_is_named(cluster, deferrable):
    secrets = {"HF_TOKEN": "absent/token"}
    run = cluster.start(config_on(cluster), deferrable=deferrable, secrets=secrets, retries=3)
    outcome, task = finish(run)
    assert (task.state, task.try_number) == ("failed", 1), outcome.log[-6000:]
    assert 'secret "absent" not found' in outcome.log


@MODES
def test_long_config_travels_as_a_config_map_that_goes_with_its_pod(cluster, deferrable):
    config = config_on(cluster, exp_metadata=json.dumps({"note": "x" * 100_000}))
    outcome, task = finish(cluster.start(config, deferrable=deferrable))
    assert task.state == "success", outcome.log[-6000:]
    names = [item.metadata.name for item in cluster.core.list_namespaced_config_map(cluster.namespace).items]
    assert [name for name in names if name.endswith("-config")] == []
