"""More than one process: what one rank meets, the run says."""

from __future__ import annotations

import signal
import socket

import psutil
import pytest

from tests import tiny
from tests.trainer.test_refusals import wait_for
from tests.trainer.test_resume import assert_bit_equal, is_alive, step_reached, weights
from trainer.progress import read_history

TWO = {"SET_NUM_PROCESSES_TO_NUM_GPUS": "False"}


SENSITIVE = {"max_steps": 40, "save_steps": 5, "lora_dropout": 0.2}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 10}


@pytest.fixture
def two_ranks(lora_config):
    return {**lora_config, **SENSITIVE, "accelerate_launch_args": {"num_processes": 2}}


@pytest.fixture(scope="session")
def undisturbed_ranks(finish):
    """Undisturbed but for the port that they are told to meet at, which is taken."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        args = {"num_processes": 2, "main_process_port": busy.getsockname()[1]}
        keys = {"accelerate_launch_args": args, **SENSITIVE, **EVALUATES}
        return finish("two-ranks", env=TWO, evaluates=True, **keys)


def test_busy_rendezvous_port_is_passed_by(undisturbed_ranks):
    assert undisturbed_ranks.result["world_size"] == 2


def rank_process(parent_pid: int, rank: int) -> psutil.Process:
    """The rank's own process, below the parent and accelerate's launcher."""
    for process in psutil.Process(parent_pid).children(recursive=True):
        if process.environ().get("RANK") == str(rank):
            return process
    raise AssertionError(f"rank {rank} not found")


def test_sigterm_to_two_ranks_saves_once_and_resumes_bit_equal(
    two_ranks, start_trainer, run_trainer, undisturbed_ranks, tmp_path
):
    """It comes when an evaluation has begun that takes a while; a little later is as good."""
    held_out = tiny.write_tweets(tmp_path / "held-out.jsonl", rows=400, seed=9)
    two_ranks |= {**EVALUATES, "validation_data_path": str(held_out)}
    first = start_trainer(two_ranks, **TWO)
    wait_for(lambda: step_reached(tmp_path / "out") >= 10, poll_s=0.002)
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() == 206, first.stderr[-3000:]
    stopped_at = first.result["last_checkpoint_step"]
    second = run_trainer(two_ranks, **TWO)
    assert second.result["resumed_from_step"] == stopped_at
    evaluated = [entry["step"] for entry in read_history(tmp_path / "out") if "eval_loss" in entry]
    assert evaluated == [10, 20, 30, 40]
    assert_bit_equal(weights(tmp_path / "out"), weights(undisturbed_ranks.out))


def test_killed_rank_ends_the_run_204(two_ranks, start_trainer, tmp_path):
    run = start_trainer({**two_ranks, "max_steps": 100_000, "save_strategy": "no"}, **TWO)
    wait_for(lambda: step_reached(tmp_path / "out") >= 2)
    rank_process(run.process.pid, 1).send_signal(signal.SIGKILL)
    assert run.wait(timeout_s=60) == 204, run.stderr[-3000:]


def test_stopped_rank_ends_the_run_205_within_the_hang_timeout(two_ranks, start_trainer, tmp_path):
    config = {**two_ranks, "max_steps": 100_000, "save_strategy": "no", "hang_timeout_s": 30}
    run = start_trainer(config, **TWO)
    wait_for(lambda: step_reached(tmp_path / "out") >= 2)
    stopped = rank_process(run.process.pid, 1)
    stopped.send_signal(signal.SIGSTOP)
    assert run.wait(timeout_s=90) == 205, run.stderr[-3000:]
    assert run.result["reason"] == (
        "Rank 1 is stopped (SIGSTOP) and showed no sign of life for 30 s (hang_timeout_s)."
    )
    # SIGKILL is on its way; a busy machine takes a moment.
    gone, _ = psutil.wait_procs([stopped], timeout=10)
    assert gone or stopped.status() == psutil.STATUS_ZOMBIE


def test_parent_killed_at_the_rendezvous_takes_the_launcher_along(lora_config, start_trainer):
    """The second node of two, whose first answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as node_zero:
        node_zero.settimeout(120)
        node = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(node_zero.getsockname()[1])}
        run = start_trainer(lora_config, WORLD_SIZE="2", RANK="1", **node)
        connection, _ = node_zero.accept()
        below = psutil.Process(run.process.pid).children(recursive=True)
        assert "accelerate.commands.launch" in below[0].cmdline()
        run.process.kill()
        run.process.wait()
        wait_for(lambda: not any(is_alive(process) for process in below), timeout_s=10)
        connection.close()


def test_first_failing_ranks_code_and_sentence_are_the_runs(two_ranks, run_trainer, tmp_path):
    """The accelerator's out-of-memory, raised in rank 1 alone by an injected sitecustomize."""
    (tmp_path / "sitecustomize.py").write_text(OUT_OF_MEMORY_IN_RANK_1)
    run = run_trainer(two_ranks, code=202, PYTHONPATH=str(tmp_path), **TWO)
    assert (
        "The accelerator is out of memory: CUDA out of memory. Tried to allocate 20.00 GiB"
        in run.result["reason"]
    )
    assert "gradient_checkpointing" in run.result["advice"]


OUT_OF_MEMORY_IN_RANK_1 = """
import os
if os.environ.get("RANK") == "1":
    import torch
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    torch.Tensor.backward = fail
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
