"""Runs that ended well, made once for all workers of a test run and only read afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from tests import tiny
from tests.conftest import TrainerRun
from trainer.files import sha256_file


@dataclass(frozen=True)
class FinishedRun:
    """What a run said and left; a test that changes something of it takes a copy.

    :param base_sha256: of the base model's weights before it
    """

    config: dict
    out: Path
    result: dict
    progress: list[dict]
    stderr: str
    base_sha256: str


@pytest.fixture(scope="session")
def finish(shared_dir, tiny_model_dir) -> Callable[..., FinishedRun]:
    """Run the trainer with `tiny.lora_config` and more keys, or find it run."""

    def finish(
        name: str, *, env: Mapping[str, str] | None = None, evaluates: bool = False, **keys: object
    ) -> FinishedRun:
        directory = shared_dir / f"finished-{name}"
        facts = directory / "facts.json"
        with FileLock(shared_dir / f"finished-{name}.lock"):
            if not facts.exists():
                directory.mkdir()
                if evaluates:
                    held_out = tiny.write_tweets(directory / "held-out.jsonl", rows=16, seed=9)
                    keys["validation_data_path"] = str(held_out)
                facts.write_text(json.dumps(run_in(directory, tiny_model_dir, env or {}, keys)))
        return FinishedRun(out=directory / "out", **json.loads(facts.read_text()))

    return finish


def run_in(directory: Path, model_dir: Path, env: Mapping[str, str], keys: dict) -> dict:
    tweets = tiny.write_tweets(directory / "tweets.jsonl")
    config = {**tiny.lora_config(model_dir, tweets, directory / "out"), **keys}
    base_sha256 = sha256_file(model_dir / "model.safetensors")
    run = TrainerRun(config, dict(env), directory / "termination.log")
    assert run.wait() == 0, run.stderr[-4000:]
    said = {"result": run.result, "progress": run.progress, "stderr": run.stderr}
    return {"config": config, "base_sha256": base_sha256, **said}


@pytest.fixture(scope="session")
def lora(finish) -> FinishedRun:
    """LoRA that learned the labels, with a token of its own, evaluation, a report and the export for vLLM."""
    return finish(
        "lora",
        env={"SFT_RUN_ID": "dag/run/task/-1"},
        evaluates=True,
        target_modules=["all-linear"],
        max_steps=60,
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        logging_steps=10,
        save_steps=30,
        save_total_limit=1,
        generate_samples=2,
        lora_post_process_for_vllm=True,
        add_special_tokens=["<|complaint|>"],
    )


@pytest.fixture(scope="session")
def undisturbed(finish) -> FinishedRun:
    """40 steps with a checkpoint every 5; dropout and shuffling make it sensitive to every random state."""
    return finish("undisturbed", max_steps=40, save_steps=5, lora_dropout=0.2)
