"""Disturb a run, run it again: the weights are those of an undisturbed run, bit for bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.here import train_here
from tests.trainer.test_refusals import wait_for
from trainer.checkpoints import CheckpointStore, checkpoint_step


def weights(directory):
    files = list(directory.glob("*.safetensors"))
    assert files, sorted(path.name for path in directory.iterdir())
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_bit_equal(left, right):
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.fixture
def config(lora_config):
    """That of `undisturbed`, in a place of its own; long enough to be hit in the middle."""
    return {**lora_config, "max_steps": 40, "save_steps": 5, "lora_dropout": 0.2}


def step_reached(out):
    try:
        return json.loads((out / "progress.json").read_text())["step"]
    except (OSError, ValueError):
        return 0


def test_sigterm_saves_and_the_next_attempt_ends_bit_equal(config, start_trainer, undisturbed, tmp_path):
    out = tmp_path / "out"
    first = start_trainer(config)
    wait_for(lambda: step_reached(out) >= 7)
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() == 206
    assert first.result["status"] == "interrupted"
    stopped_at = first.result["last_checkpoint_step"]
    assert stopped_at == first.result["steps"]
    assert not (out / ".complete").exists()

    newest = CheckpointStore(out).newest_valid(pytest.fail)
    assert newest.name == f"checkpoint-{stopped_at}"
    train_here(config, tmp_path / "scratch", resume_from=newest)
    assert_bit_equal(weights(out), weights(undisturbed.out))


def test_parent_killed_at_a_random_point_takes_its_rank_along_and_the_end_is_bit_equal(
    config, start_trainer, run_trainer, undisturbed, tmp_path
):
    """The newest checkpoint is damaged as well: the one before it is taken."""
    out = tmp_path / "out"
    step = random.Random(time.time_ns()).randrange(12, 34)
    run = start_trainer(config)
    wait_for(lambda: step_reached(out) >= step, poll_s=0.005)
    below = psutil.Process(run.process.pid).children(recursive=True)
    run.process.kill()
    run.process.wait()
    wait_for(lambda: not any(is_alive(process) for process in below), timeout_s=60)
    newest = CheckpointStore(out).newest()
    (newest / "optimizer.pt").unlink()
    last = run_trainer(config)
    assert f"Skipped {newest.name}: optimizer.pt is missing" in last.stderr
    resumed_from = last.result["resumed_from_step"]
    assert f"Attempt 2 resumes from checkpoint-{resumed_from}." in last.stderr
    assert last.progress[0]["step"] == resumed_from + 1
    assert (last.result["attempt"], resumed_from) == (2, checkpoint_step(newest) - 5)
    assert_bit_equal(weights(out), weights(undisturbed.out))


def is_alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def rank_group(parent_pid: int) -> int:
    return psutil.Process(parent_pid).children()[0].pid


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.fixture
def as_stream(tweets, tmp_path):
    """The tweets, 16 batches a pass, read while they are trained on."""
    path = tmp_path / "data.json"
    sources = [{"name": "tweets", "data_paths": [str(tweets)]}]
    path.write_text(json.dumps({"dataprocessor": {"streaming": True}, "datasets": sources}))
    return {"data_config_path": str(path), "training_data_path": None}


@pytest.mark.parametrize(
    ("kind", "damage", "sentence"),
    [
        ("packed", flip_a_bit, "optimizer.pt is damaged (its digest differs)"),
        ("stream", cut, "optimizer.pt has 100 bytes"),
        ("shuffled stream", lambda path: path.unlink(), "optimizer.pt is missing"),
    ],
)
def test_damaged_newest_checkpoint_is_skipped_with_a_sentence_and_the_end_is_bit_equal(
    config, as_stream, tmp_path, caplog, kind, damage, sentence
):
    """Steps 20 to 24, also of streams: more than one pass over their 64 rows, and accumulated batches."""
    kinds = {
        "packed": {"packing": True, "max_seq_length": 64},
        "stream": as_stream,
        "shuffled stream": {**as_stream, "shuffle_dataset": True},
    }
    config = {**config, **kinds[kind], "max_steps": 24, "save_steps": 4, "gradient_accumulation_steps": 2}
    out = tmp_path / "out"
    train_here(config, tmp_path / "scratch")
    damage(out / "checkpoint-24" / "optimizer.pt")
    before, said = weights(out), []
    newest = CheckpointStore(out).newest_valid(said.append)
    assert newest.name == "checkpoint-20"
    assert said[0].startswith(f"Skipped checkpoint-24: {sentence}")
    train_here(config, tmp_path / "scratch", resume_from=newest)
    assert ("it is read again from its start up to the rows of checkpoint-20" in caplog.text) == (
        kind == "shuffled stream"
    )
    assert_bit_equal(weights(out), before)


@pytest.fixture
def left_by_another(undisturbed, tmp_path):
    """The checkpoints of `undisturbed` up to step 20, in an output_dir that no run has claimed."""
    out = tmp_path / "out"
    for step in (10, 15, 20):
        shutil.copytree(undisturbed.out / f"checkpoint-{step}", out / f"checkpoint-{step}")
    return out


def test_other_number_of_processes_resumes_and_says_what_that_changes(config, left_by_another, run_trainer):
    """The same config on another node: how many processes there are comes from the environment."""
    two = {"PET_NPROC_PER_NODE": "2", "SET_NUM_PROCESSES_TO_NUM_GPUS": "False"}
    run = run_trainer({**config, "max_steps": 24}, **two)
    assert (run.result["resumed_from_step"], run.result["world_size"]) == (20, 2)
    assert any(
        "checkpoint-20 was written by one process and this run has 2 processes" in notice
        for notice in json.loads((left_by_another / "result.json").read_text())["notices"]
    )
