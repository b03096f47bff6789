"""The trainer as two nodes, in the environment that each engine gives it."""

from __future__ import annotations

import psutil
import pytest

from tests import tiny
from tests.conftest import TrainerRun
from tests.jobs.node_env import node_env
from tests.jobs.test_manifests import TWO_NODES
from tests.trainer.test_ranks import TWO, free_port
from tests.trainer.test_refusals import wait_for
from tests.trainer.test_resume import assert_bit_equal, step_reached, weights
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


TWO_BY_TWO = {**TWO_NODES, "gpus": 2, "env_vars": TWO}
# Long enough to be hit in the middle.
STEPS = {"max_steps": 30, "save_steps": 6, "per_device_train_batch_size": 2, "lora_dropout": 0.2}


@pytest.fixture
def start_nodes(start_trainer):
    """Both nodes of a job, on loopback: two ranks each, as the engine's environment says."""

    def start(engine, config):
        port = str(free_port())
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        here |= {f"PET_{key}": value for key, value in here.items()}
        envs = [node_env(engine, rank, **{**TWO_BY_TWO, "config": config}) for rank in (0, 1)]
        return [start_trainer(config, **{**env, **here}) for env in envs]

    return start


@pytest.fixture(scope="module")
def undisturbed(tiny_model_dir, tmp_path_factory):
    """The weights of four ranks to which nothing happens, on one node: of all engines here."""
    directory = tmp_path_factory.mktemp("undisturbed")
    data = tiny.write_tweets(directory / "tweets.jsonl")
    config = {**tiny.lora_config(tiny_model_dir, data, directory / "out"), **STEPS}
    config["accelerate_launch_args"] = {"num_processes": 4}
    run = TrainerRun(config, TWO, directory / "termination.log")
    assert run.wait(400) == 0, run.stderr[-4000:]
    return weights(directory / "out")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", MASTERS)
def test_node_killed_and_restarted_ends_with_the_weights_of_an_undisturbed_run(
    engine, lora_config, start_nodes, undisturbed, tmp_path
):
    config = {**lora_config, **STEPS}
    first, second = start_nodes(engine, config)
    wait_for(lambda: step_reached(tmp_path / "out") >= 7, timeout_s=400)
    kill_node(second)
    assert first.wait(200) == 204, first.stderr[-3000:]  # which every engine restarts
    nodes = start_nodes(engine, config)
    for run in nodes:
        assert run.wait(400) == 0, run.stderr[-3000:]
    result = nodes[0].result
    assert (result["world_size"], result["attempt"]) == (4, 2)
    assert 6 <= result["resumed_from_step"] < 30
    assert_bit_equal(weights(tmp_path / "out"), undisturbed)


def kill_node(run) -> None:
    """As the kernel does with a pod whose machine is lost: no process has a say."""
    for process in [*psutil.Process(run.process.pid).children(recursive=True), run.process]:
        process.kill()
    run.wait()
