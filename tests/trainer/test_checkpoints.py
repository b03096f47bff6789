"""Which checkpoint can be trusted."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from trainer.checkpoints import MANIFEST_FILE, CheckpointStore, find_flaw, recorded_step


def stage(store: CheckpointStore, step: int) -> None:
    directory = store.staging_dir / f"checkpoint-{step}"
    directory.mkdir(parents=True)
    save_file({"w": torch.full((8,), float(step))}, directory / "model.safetensors")
    torch.save({"state": {0: {"exp_avg": torch.zeros(8)}}}, directory / "optimizer.pt")
    torch.save({"cpu": torch.get_rng_state()}, directory / "rng_state.pth")
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


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth"])
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.unlink(), "{name} is missing"),
        (cut, "{name} has 40 bytes, {size} were written"),
        (flip_a_bit, "{name} is damaged (its digest differs)"),
    ],
)
def test_damaged_checkpoint_is_skipped_and_the_one_before_is_taken(store, name, damage, sentence):
    publish(store, 4, 8)
    path = store.output_dir / "checkpoint-8" / name
    size = json.loads((path.parent / MANIFEST_FILE).read_text())["files"][name]["size_bytes"]
    damage(path)
    assert newest(store) == (
        "checkpoint-4",
        [f"Skipped checkpoint-8: {sentence.format(name=name, size=size)}."],
    )


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


@pytest.mark.parametrize("files", [None, {}, ["model.safetensors"], {"model.safetensors": "whole"}])
def test_manifest_that_says_nothing_is_a_flaw(store, files):
    publish(store, 4)
    (store.output_dir / "checkpoint-4" / MANIFEST_FILE).write_text(json.dumps({"step": 4, "files": files}))
    assert newest(store)[0] is None


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


@pytest.mark.parametrize("damage", [cut, lambda path: path.unlink(), flip_a_bit])
def test_rotation_does_not_count_a_damaged_checkpoint_for_a_whole_one(tmp_path, damage):
    store = CheckpointStore(tmp_path, keep=2)
    publish(store, 2, 4)
    damage(tmp_path / "checkpoint-4" / "optimizer.pt")
    publish(store, 6)
    assert (tmp_path / "checkpoint-2").exists()
    damage(tmp_path / "checkpoint-6" / "model.safetensors")
    assert newest(store)[0] == "checkpoint-2"


@pytest.mark.parametrize("is_another_attempt", [False, True])
def test_last_whole_checkpoint_stays_whatever_flips_in_those_after_it(tmp_path, is_another_attempt):
    store = CheckpointStore(tmp_path, keep=2)
    publish(store, 2)
    for step in (4, 6, 8):
        if is_another_attempt:
            store = CheckpointStore(tmp_path, keep=2)
        publish(store, step)
        flip_a_bit(tmp_path / f"checkpoint-{step}" / "optimizer.pt")
    assert newest(store)[0] == "checkpoint-2"


def test_checkpoint_of_the_same_step_is_replaced_by_the_new_one(store):
    publish(store, 4)
    cut(store.output_dir / "checkpoint-4" / "optimizer.pt")
    publish(store, 4)
    assert newest(store) == ("checkpoint-4", [])
    assert list(store.staging_dir.iterdir()) == []


class Crafted:
    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return os.system, (f"touch {self.trap}",)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "rng_state.pth", "scheduler.pt", "adapter_model.bin", "shards/.metadata"]
)
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("described", [True, False])
def test_crafted_pickle_is_named_and_its_code_does_not_run(store, tmp_path, name, form, described):
    stage(store, 8)
    path = store.staging_dir / "checkpoint-8" / name
    path.parent.mkdir(exist_ok=True)
    crafted = {"state": Crafted(tmp_path / "trap")}
    if form == "pickle":
        path.write_bytes(pickle.dumps(crafted))
    else:
        torch.save(crafted, path.with_name("new"), _use_new_zipfile_serialization=form == "zip")
        path.with_name("new").rename(path)
    checkpoint = store.publish(8, {})
    if not described:
        (checkpoint / MANIFEST_FILE).unlink()
    flaw = f"{path.name} names posix.system, which is no part of a tensor, and is not loaded"
    assert newest(store) == (None, [f"Skipped checkpoint-8: {flaw}."])
    assert not (tmp_path / "trap").exists()


def test_state_of_torchs_older_file_format_is_taken(store):
    stage(store, 8)
    state = {"state": {0: {"exp_avg": torch.zeros(8, dtype=torch.bfloat16)}}}
    path = store.staging_dir / "checkpoint-8" / "optimizer.pt"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert find_flaw(store.publish(8, {})) is None


def test_pickled_arguments_are_not_kept(store):
    stage(store, 8)
    (store.staging_dir / "checkpoint-8" / "training_args.bin").write_bytes(b"pickle")
    assert not (store.publish(8, {}) / "training_args.bin").exists()


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
            "model.safetensors is damaged: is no safetensors file, or is cut short",
        ),
    ],
)
def test_incomplete_checkpoint_of_plain_transformers_is_not(tmp_path, break_it, flaw):
    checkpoint = leave_foreign(tmp_path)
    break_it(checkpoint)
    assert find_flaw(checkpoint) == flaw


def header(text: bytes, tail: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + tail


ONE_TENSOR = b'{"w":{"dtype":"F32","shape":[8],"data_offsets":[%s]}}'
DAMAGED_HEADERS = {
    "length of 2^64 - 1": b"\xff" * 8 + b"{}",
    "length of 40 GiB": (40 << 30).to_bytes(8, "little") + b"{}",
    "nothing": b"",
    "a list": header(b"[1, 2]"),
    "not JSON": header(b"{nothing"),
    "not UTF-8": header(b'{"\xff\xfe": 1}'),
    "nested deeply": header(b"[" * 100_000),
    "no data_offsets": header(b'{"w":{"dtype":"F32","shape":[8]}}', bytes(32)),
    "one offset": header(ONE_TENSOR % b"0", bytes(32)),
    "offsets of text": header(ONE_TENSOR % b'"0","32"', bytes(32)),
    "offsets beyond the file": header(ONE_TENSOR % b"0,3200", bytes(32)),
    "another shape": header(ONE_TENSOR % b"0,16", bytes(16)),
    "bytes that no tensor has": header(ONE_TENSOR % b"0,32", bytes(40)),
    "a tensor of text": header(b'{"w": "x"}'),
}
DAMAGED_STATES = ['{"global_step": "x"}', '{"global_step": true}', '{"global_step": -1}', "{}", "[" * 100_000]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(pytest.param("model.safetensors", content, id=name) for name, content in DAMAGED_HEADERS.items()),
        *(pytest.param("trainer_state.json", state.encode(), id=state[:24]) for state in DAMAGED_STATES),
        pytest.param("optimizer.pt", b"PK\x03\x04" + bytes(64), id="optimizer"),
        pytest.param("manifest.json", b'{"files": {"\\u0000": {}, "a": 1}}', id="manifest of other types"),
        pytest.param("manifest.json", b'{"files": {"%s": {"size_bytes": 1, "sha256": 2}}}' % (b"x" * 999), id="manifest of a long name"),
        pytest.param("manifest.json", b"\xff", id="manifest of bytes"),
    ],
)  # fmt: skip
def test_checkpoint_without_manifest_that_is_damaged_is_skipped_for_the_whole_one_before(
    store, name, content
):
    publish(store, 4)
    (leave_foreign(store.output_dir) / name).write_bytes(content)
    checkpoint, said = newest(store)
    assert checkpoint == "checkpoint-4"
    assert len(said) == 1
    assert said[0].startswith("Skipped checkpoint-8: ")


def test_checkpoint_of_another_step_than_its_name_is_skipped_and_its_step_named(store):
    publish(store, 4)
    leave_foreign(store.output_dir, step=6).rename(store.output_dir / "checkpoint-2099")
    checkpoint, said = newest(store)
    assert (checkpoint, recorded_step(store.output_dir / "checkpoint-2099")) == ("checkpoint-4", 6)
    assert said == [
        "Skipped checkpoint-2099: its trainer_state.json is that of step 6; rename it to checkpoint-6 to resume from it."
    ]


def test_many_broken_checkpoints_are_six_sentences(store):
    publish(store, 4)
    for step in range(1000, 1040):
        (store.output_dir / f"checkpoint-{step}").mkdir()
    checkpoint, said = newest(store)
    assert checkpoint == "checkpoint-4"
    assert (len(said), said[-1]) == (6, "Skipped 35 more checkpoints that are not whole.")
