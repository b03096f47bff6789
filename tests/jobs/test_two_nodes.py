"""The trainer as two nodes, in the environment that each engine gives it."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from tests.conftest import TrainerRun
from tests.jobs.node_env import node_env
from tests.jobs.test_manifests import TWO_NODES
from tests.trainer.test_ranks import TWO, free_port
from tests.trainer.test_refusals import wait_for
from tests.trainer.test_resume import assert_bit_equal, step_reached, weights
from trainer.launch import Launch, plan_launch
from trainer.nodes import Nodes, read_nodes

MASTERS = {
    "job": ("sft-2x8-0.sft-2x8", 29500),
    "jobset": ("sft-2x8-node-0-0.sft-2x8", 29500),
    "trainjob": ("sft-2x8-node-0-0.sft-2x8", 29500),
    "pytorchjob": ("sft-2x8-master-0", 23456),
}


@pytest.mark.parametrize("engine", MASTERS)
@pytest.mark.parametrize("rank", [0, 1])
def test_node_knows_from_its_environment_which_of_two_it_is(engine, rank):
    address, port = MASTERS[engine]
    expected = Nodes(count=2, rank=rank, processes_per_node=8, master_address=address, master_port=port)
    assert read_nodes(node_env(engine, rank, **TWO_NODES)) == expected


# The test cluster has no GPU to show.
TWO_BY_TWO = {**TWO_NODES, "gpus": 2, "env_vars": {**TWO, "SFT_EXPECTED_GPUS": "0"}}
# Every weight, by DDP at its defaults: more than two ranks must be added up in the same order again. Long enough to be
# hit in the middle.
STEPS = {
    "peft_method": "none",
    "learning_rate": 1e-3,
    "max_steps": 30,
    "save_steps": 6,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
}


@pytest.fixture
def start_nodes(start_trainer):
    """Both nodes of a job, on loopback: two ranks each, as the engine's environment says."""

    def start(engine, config):
        here = on_loopback(str(free_port()))
        envs = [node_env(engine, rank, **{**TWO_BY_TWO, "config": config}) for rank in (0, 1)]
        return [start_trainer(config, **{**env, **here}) for env in envs]

    return start


@pytest.mark.parametrize("rank", [0, 1])
def test_every_engine_makes_a_node_launch_its_ranks_in_the_same_way(rank, tmp_path):
    """So that what is shown below with three of them holds for all."""
    launches = [plan_on_loopback(node_env(engine, rank, **TWO_BY_TWO), tmp_path) for engine in MASTERS]
    assert launches == [launches[0]] * len(MASTERS)
    assert "--machine_rank" in " ".join(launches[0].argv)


def plan_on_loopback(env: dict[str, str], scratch: Path) -> Launch:
    return plan_launch({}, {**env, **on_loopback("29511")}, gpus=0, scratch_dir=scratch)


def on_loopback(port: str) -> dict[str, str]:
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return here | {f"PET_{key}": value for key, value in here.items()}


@pytest.mark.timeout(900)
def test_node_killed_and_restarted_ends_with_the_weights_of_an_undisturbed_run(
    lora_config, start_nodes, tmp_path
):
    """Undisturbed as a Job; killed as a PyTorchJob, and restarted as a TrainJob, whose nodes are a JobSet's."""
    config = {**lora_config, **STEPS}
    undisturbed = start_nodes("job", {**config, "output_dir": str(tmp_path / "undisturbed")})
    for run in undisturbed:
        assert run.wait(400) == 0, run.stderr[-3000:]
    assert_one_model(*undisturbed, tmp_path / "undisturbed")
    first, second = start_nodes("pytorchjob", config)
    wait_for(lambda: step_reached(tmp_path / "out") >= 7, timeout_s=400)
    kill_node(second)
    assert first.wait(200) == 204, first.stderr[-3000:]  # which every engine restarts
    nodes = start_nodes("trainjob", config)
    for run in nodes:
        assert run.wait(400) == 0, run.stderr[-3000:]
    result = nodes[0].result
    assert (result["world_size"], result["attempt"]) == (4, 2)
    assert 6 <= result["resumed_from_step"] < 30
    assert_bit_equal(weights(tmp_path / "out"), weights(tmp_path / "undisturbed"))


def assert_one_model(first: TrainerRun, second: TrainerRun, out: Path) -> None:
    result = json.loads((out / "result.json").read_text())
    assert (result["world_size"], result["distributed"], result["steps"]) == (4, "ddp", STEPS["max_steps"])
    assert first.result["model_path"] == str(out)
    assert second.result["reason"].startswith("Node 1 of 2 did its part")
    assert "model_path" not in second.result
    assert second.progress == []
    assert (out / "attempts.jsonl").read_text().count('"started"') == 1


def kill_node(run) -> None:
    """As the kernel does with a pod whose machine is lost: no process has a say."""
    for process in [*psutil.Process(run.process.pid).children(recursive=True), run.process]:
        process.kill()
    run.wait()
