"""Which checkpoint can be trusted."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from trainer.checkpoints import MANIFEST_FILE, CheckpointStore, find_flaw


def stage(store: CheckpointStore, step: int) -> None:
    directory = store.staging_dir / f"checkpoint-{step}"
    directory.mkdir(parents=True)
    save_file({"w": torch.full((8,), float(step))}, directory / "model.safetensors")
    (directory / "optimizer.pt").write_bytes(b"o" * 100)
    (directory / "rng_state.pth").write_bytes(b"r")
    (directory / "trainer_state.json").write_text(json.dumps({"global_step": step}))


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path)


def publish(store, *steps):
    for step in steps:
        stage(store, step)
        store.publish(step, {"world_size": 1})


def newest(store):
    said = []
    checkpoint = store.newest_valid(said.append)
    return checkpoint.name if checkpoint else None, said


def test_published_checkpoint_is_the_newest_valid_one(store):
    publish(store, 4, 12, 8)
    assert newest(store) == ("checkpoint-12", [])
    assert json.loads((store.output_dir / "checkpoint-12" / MANIFEST_FILE).read_text())["world_size"] == 1


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.unlink(), "Skipped checkpoint-8: optimizer.pt is missing."),
        (
            lambda path: path.write_bytes(b"o" * 40),
            "Skipped checkpoint-8: optimizer.pt has 40 bytes, 100 were written.",
        ),
        (
            lambda path: path.write_bytes(b"o" * 99 + b"p"),
            "Skipped checkpoint-8: optimizer.pt is damaged (its digest differs).",
        ),
    ],
)
def test_damaged_checkpoint_is_skipped_and_the_one_before_is_taken(store, damage, sentence):
    publish(store, 4, 8)
    damage(store.output_dir / "checkpoint-8" / "optimizer.pt")
    assert newest(store) == ("checkpoint-4", [sentence])


def test_checkpoint_without_a_rename_is_not_seen(store):
    publish(store, 4)
    stage(store, 8)
    assert newest(store) == ("checkpoint-4", [])
    store.clear_staging()
    assert not store.staging_dir.exists()


def test_broken_manifest_is_a_flaw(store):
    publish(store, 4)
    (store.output_dir / "checkpoint-4" / MANIFEST_FILE).write_text("{")
    assert newest(store) == (None, ["Skipped checkpoint-4: its manifest cannot be read."])


def test_rotation_keeps_the_newest_by_step_and_the_best(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (2, 4, 6, 8):
        stage(store, step)
        store.publish(step, {}, best=tmp_path / "checkpoint-2")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-6",
        "checkpoint-8",
    ]


def test_rotation_counts_whole_checkpoints_only(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    publish(store, 2)
    (tmp_path / "checkpoint-9").mkdir()
    publish(store, 4)
    assert newest(store)[0] == "checkpoint-4"


def leave_foreign(tmp_path, step=8):
    """As plain transformers leaves one: no manifest."""
    store = CheckpointStore(tmp_path)
    stage(store, step)
    (store.staging_dir / f"checkpoint-{step}").rename(tmp_path / f"checkpoint-{step}")
    return tmp_path / f"checkpoint-{step}"


def test_checkpoint_of_plain_transformers_is_taken(tmp_path):
    assert find_flaw(leave_foreign(tmp_path)) is None


@pytest.mark.parametrize(
    ("break_it", "flaw"),
    [
        (lambda path: (path / "optimizer.pt").unlink(), "it has no optimizer state"),
        (lambda path: (path / "rng_state.pth").unlink(), "it has no random-number state"),
        (
            lambda path: (path / "trainer_state.json").write_text("{"),
            "trainer_state.json is missing or damaged",
        ),
        (lambda path: (path / "model.safetensors").unlink(), "it has no weights in safetensors"),
        (
            lambda path: (path / "model.safetensors").open("r+b").truncate(60),
            "model.safetensors is cut short",
        ),
    ],
)
def test_incomplete_checkpoint_of_plain_transformers_is_not(tmp_path, break_it, flaw):
    checkpoint = leave_foreign(tmp_path)
    break_it(checkpoint)
    assert find_flaw(checkpoint) == flaw
