"""Told to stop in the middle of an evaluation: it is broken off, and the next attempt evaluates before it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_provider_sft.contract.errors import InterruptedRunError
from tests import tiny
from tests.trainer.here import train_here
from tests.trainer.test_resume import assert_bit_equal, weights
from trainer.checkpoints import CheckpointStore
from trainer.consensus import StopSignal

BY_STEPS = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
BY_EPOCH = {"eval_strategy": "epoch", "save_strategy": "epoch"}
# Dropout tells random numbers apart; the rows are three batches; the best of three evaluations is the model.
COMMON = {
    "max_steps": -1,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 8,
    "lora_dropout": 0.3,
    "load_best_model_at_end": True,
    "save_total_limit": 2,
    "report": False,
}


class ComesAt(StopSignal):
    """SIGTERM just before the trainer looks for the n-th time: after a step, after a batch of evaluation, or a save."""

    def __init__(self, n: int) -> None:
        self.n, self.asked = n, 0

    @property
    def received(self) -> bool:
        self.asked += 1
        return self.asked >= self.n


@pytest.fixture
def config(lora_config, tmp_path):
    held_out = tiny.write_tweets(tmp_path / "held-out.jsonl", rows=24, seed=9)
    return {**lora_config, **COMMON, "validation_data_path": str(held_out)}


def evaluations(out: Path) -> list[tuple[int, float]]:
    lines = (out / ".sft.history.jsonl").read_text().splitlines()
    return [(log["step"], log["eval_loss"]) for log in map(json.loads, lines) if "eval_loss" in log]


# In the first epoch; after its last step, when an evaluation is due; in the middle of that; in the last evaluation.
MOMENTS = {2: 2, 4: 4, 6: 4, 21: 12}


@pytest.mark.parametrize("schedule", [BY_STEPS, BY_EPOCH], ids=["steps", "epoch"])
def test_run_interrupted_around_an_evaluation_ends_as_an_undisturbed_one(config, tmp_path, schedule):
    config = {**config, **schedule}
    undisturbed = tmp_path / "undisturbed"
    train_here({**config, "output_dir": str(undisturbed)}, tmp_path / "scratch")
    assert [step for step, _ in evaluations(undisturbed)] == [4, 8, 12]
    for n, step in MOMENTS.items():
        out = tmp_path / f"out-{n}"
        with pytest.raises(InterruptedRunError, match=f"^Interrupted at step {step} and saved.$"):
            train_here({**config, "output_dir": str(out)}, tmp_path / "scratch", stop=ComesAt(n))
        assert step not in dict(evaluations(out)), "it was not broken off"
        newest = CheckpointStore(out).newest_valid(print)
        train_here({**config, "output_dir": str(out)}, tmp_path / "scratch", resume_from=newest)
        assert evaluations(out) == evaluations(undisturbed)
        assert best(out) == best(undisturbed)
        assert_bit_equal(weights(out), weights(undisturbed))


def best(out: Path) -> tuple[int, float]:
    state = json.loads((out / "checkpoint-12" / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]).name == f"checkpoint-{state['best_global_step']}"
    return state["best_global_step"], state["best_metric"]


def test_interrupted_in_an_evaluation_before_the_first_step_saves_nothing(config, tmp_path):
    config = {**config, **BY_STEPS, "eval_on_start": True}
    with pytest.raises(InterruptedRunError, match="nothing new was saved"):
        train_here(config, tmp_path / "scratch", stop=ComesAt(2))
    assert CheckpointStore(tmp_path / "out").newest() is None


def test_interrupted_again_in_the_evaluation_that_was_owed_it_is_owed_still(config, tmp_path):
    config = {**config, **BY_STEPS}
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    for n in (4, 2):
        with pytest.raises(InterruptedRunError, match="at step 4 and saved"):
            train_here(config, scratch, stop=ComesAt(n), resume_from=CheckpointStore(out).newest_valid(print))
    train_here(config, scratch, resume_from=CheckpointStore(out).newest_valid(print))
    assert [step for step, _ in evaluations(out)] == [4, 8, 12]
