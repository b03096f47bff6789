"""Disturb a run, run it again: the weights are those of an undisturbed run, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.test_refusals import wait_for


def weights(directory):
    files = list(directory.glob("*.safetensors"))
    assert files, sorted(path.name for path in directory.iterdir())
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_bit_equal(left, right):
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.fixture
def config(lora_config):
    """Long enough to be hit in the middle; dropout and shuffling make it sensitive to every random state."""
    return {**lora_config, "max_steps": 40, "save_steps": 5, "lora_dropout": 0.2, "logging_steps": 1}


@pytest.fixture
def undisturbed(config, run_trainer, tmp_path):
    out = tmp_path / "undisturbed"
    run_trainer({**config, "output_dir": str(out)})
    return weights(out)


def step_reached(out):
    try:
        return json.loads((out / "progress.json").read_text())["step"]
    except (OSError, ValueError):
        return 0


def test_sigterm_saves_and_the_next_attempt_ends_bit_equal(
    config, start_trainer, run_trainer, undisturbed, tmp_path
):
    out = tmp_path / "out"
    first = start_trainer(config)
    wait_for(lambda: step_reached(out) >= 7)
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() == 206
    assert first.result["status"] == "interrupted"
    stopped_at = first.result["last_checkpoint_step"]
    assert stopped_at == first.result["steps"]
    assert not (out / ".complete").exists()

    second = run_trainer(config)
    assert f"Attempt 2 resumes from checkpoint-{stopped_at}." in second.stderr
    assert second.progress[0]["step"] == stopped_at + 1
    assert (second.result["resumed_from_step"], second.result["attempt"]) == (stopped_at, 2)
    assert_bit_equal(weights(out), undisturbed)


def test_sigkill_at_random_points_ends_bit_equal(config, start_trainer, run_trainer, undisturbed, tmp_path):
    out = tmp_path / "out"
    for target in sorted(random.Random(time.time_ns()).sample(range(3, 36), 2)):
        run = start_trainer(config)
        wait_for(lambda target=target: step_reached(out) >= target)
        import os

        os.killpg(rank_group(run.process.pid), signal.SIGKILL)
        run.process.kill()
        run.wait()
    last = run_trainer(config)
    assert last.result["attempt"] == 3
    assert_bit_equal(weights(out), undisturbed)


def rank_group(parent_pid: int) -> int:
    import psutil

    return psutil.Process(parent_pid).children()[0].pid


def test_damaged_newest_checkpoint_is_skipped_with_a_sentence(config, run_trainer, tmp_path):
    out = tmp_path / "out"
    short = {**config, "max_steps": 10}
    run_trainer(short)
    (out / ".complete").unlink()
    (out / "checkpoint-10" / "optimizer.pt").open("r+b").truncate(100)
    before = weights(out)
    run = run_trainer(short)
    assert "Skipped checkpoint-10: optimizer.pt has 100 bytes" in run.stderr
    assert run.result["resumed_from_step"] == 5
    assert_bit_equal(weights(out), before)


def test_sigterm_while_loading_is_never_a_success(start_trainer, lora_config, tmp_path):
    run = start_trainer(lora_config)
    wait_for((tmp_path / "out" / "attempts.jsonl").exists)
    time.sleep(1.0)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 206
    assert run.result["status"] == "interrupted"
    assert not (tmp_path / "out" / ".complete").exists()


def test_sigint_after_sigterm_ends_at_once(start_trainer, lora_config, tmp_path):
    run = start_trainer({**lora_config, "max_steps": 100_000, "save_strategy": "no"})
    wait_for(lambda: step_reached(tmp_path / "out") >= 1)
    run.process.send_signal(signal.SIGTERM)
    run.process.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert run.wait() == 206
    assert time.monotonic() - started < 10


def test_second_sigterm_does_not_keep_the_first_from_saving(start_trainer, lora_config, tmp_path):
    run = start_trainer({**lora_config, "max_steps": 100_000, "save_strategy": "no"})
    wait_for(lambda: step_reached(tmp_path / "out") >= 1)
    run.process.send_signal(signal.SIGTERM)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 206
    assert run.result["last_checkpoint_step"] >= 1
