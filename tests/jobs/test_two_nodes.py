"""The trainer as two nodes, in the environment that each engine gives it."""

from __future__ import annotations

import psutil
import pytest

from tests.jobs.node_env import node_env
from tests.jobs.test_manifests import TWO_NODES
from tests.trainer.test_ranks import TWO, free_port
from tests.trainer.test_refusals import wait_for
from tests.trainer.test_resume import assert_bit_equal, step_reached, weights
from trainer.nodes import Nodes, read_nodes

MASTERS = {
    "job": ("sft-2x8-0.sft-2x8", 29500),
    "jobset": ("sft-2x8-node-0-0.sft-2x8", 29500),
    "trainjob": ("sft-2x8-node-0-0.sft-2x8", 29400),
    "pytorchjob": ("sft-2x8-master-0", 23456),
}


@pytest.mark.parametrize("engine", MASTERS)
@pytest.mark.parametrize("rank", [0, 1])
def test_node_knows_from_its_environment_which_of_two_it_is(engine, rank):
    address, port = MASTERS[engine]
    expected = Nodes(count=2, rank=rank, processes_per_node=8, master_address=address, master_port=port)
    assert read_nodes(node_env(engine, rank, **TWO_NODES)) == expected


@pytest.fixture
def start_nodes(start_trainer):
    """Both nodes of a job, on loopback."""

    def start(engine, config):
        port = str(free_port())
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        here |= {f"PET_{key}": value for key, value in here.items()}
        runs = []
        for rank in (0, 1):
            env = node_env(engine, rank, **{**TWO_NODES, "config": config, "gpus": 0, "env_vars": TWO})
            runs.append(start_trainer(config, **{**env, **here}))
        return runs

    return start


@pytest.fixture
def four_ranks(lora_config):
    """DDP that looks for unused parameters keeps its buckets. Otherwise it sorts them anew after its first step, and
    after a resume again: the order in which more than two ranks are added up changes, and with it the last bit.
    """
    steps = {"max_steps": 12, "save_steps": 4, "per_device_train_batch_size": 2}
    ranks = {"accelerate_launch_args": {"num_processes": 4}, "ddp_find_unused_parameters": True}
    return {**lora_config, **steps, **ranks, "lora_dropout": 0.2}


@pytest.mark.timeout(900)
def test_node_killed_and_restarted_ends_with_the_weights_of_an_undisturbed_run(
    four_ranks, start_nodes, tmp_path
):
    for run in start_nodes("pytorchjob", {**four_ranks, "output_dir": str(tmp_path / "undisturbed")}):
        assert run.wait(400) == 0, run.stderr[-3000:]
    first, second = start_nodes("jobset", four_ranks)
    wait_for(lambda: step_reached(tmp_path / "out") >= 5, timeout_s=400)
    kill_node(second)
    assert first.wait(200) == 204, first.stderr[-3000:]  # which every engine restarts
    nodes = start_nodes("jobset", four_ranks)
    for run in nodes:
        assert run.wait(400) == 0, run.stderr[-3000:]
    result = nodes[0].result
    assert (result["world_size"], result["resumed_from_step"], result["attempt"]) == (4, 4, 2)
    assert_bit_equal(weights(tmp_path / "out"), weights(tmp_path / "undisturbed"))


def kill_node(run) -> None:
    """As the kernel does with a pod whose machine is lost: no process has a say."""
    for process in [*psutil.Process(run.process.pid).children(recursive=True), run.process]:
        process.kill()
    run.wait()
