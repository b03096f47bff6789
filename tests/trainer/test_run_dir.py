"""Whose an output_dir is, and what may be done in it."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest

from airflow_provider_sft.contract.errors import AccessDeniedError, ConfigError
from trainer.lock import RunLock
from trainer.run_dir import RunDir, RunIdentity, identify_run

MINE = RunIdentity("c", "d", "m", "dag/run/task/-1")
RESULT = {"contract_version": 1, "status": "succeeded", "exit_code": 0, "reason": "Tuned.", "advice": ""}


@pytest.fixture
def run_dir(tmp_path):
    run_dir = RunDir(tmp_path / "out")
    run_dir.prepare()
    return run_dir


def test_prepare_creates_the_directory_and_leaves_no_probe(run_dir):
    assert list(run_dir.path.iterdir()) == []


def test_output_dir_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="lies below a file. Name a directory"):
        RunDir(tmp_path / "file" / "out").prepare()


def test_output_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file. Name a directory"):
        RunDir(tmp_path / "file").prepare()


def test_read_only_file_system_is_denied():
    with pytest.raises(AccessDeniedError, match="cannot be written by user"):
        RunDir(__import__("pathlib").Path("/proc/sft-out")).prepare()


def test_fresh_directory_is_not_finished(run_dir):
    assert run_dir.finished(MINE) is None


def test_finished_run_gives_its_result(run_dir):
    run_dir.claim(MINE)
    run_dir.complete(RESULT)
    assert run_dir.finished(MINE) == RESULT


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("config_sha256", "config"),
        ("data_sha256", "data"),
        ("base_model_sha256", "base model"),
        ("run_id", "SFT_RUN_ID"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_another_runs_directory_is_refused_and_untouched(run_dir, field, name, complete):
    run_dir.claim(MINE)
    if complete:
        run_dir.complete(RESULT)
    before = {path.name: path.read_bytes() for path in run_dir.path.iterdir()}
    other = dataclasses.replace(MINE, **{field: "other"})
    with pytest.raises(
        ConfigError, match=rf"belongs to another run \(its {name} differ\). Use a directory per run"
    ):
        run_dir.finished(other)
    assert {path.name: path.read_bytes() for path in run_dir.path.iterdir()} == before


def test_finished_run_of_the_peer_is_refused(run_dir):
    (run_dir.path / ".complete").touch()
    with pytest.raises(ConfigError, match="belongs to another run"):
        run_dir.finished(MINE)


OTHER = dataclasses.replace(MINE, run_id="other")


@pytest.fixture
def left(run_dir):
    """A finished run's directory, export and prepared rows included."""
    run_dir.claim(MINE)
    run_dir.complete(RESULT)
    for name in ("checkpoint-8", "merged", "base", "vllm", ".export", ".sft.prepared", "train_dataset"):
        (run_dir.path / name).mkdir()
        (run_dir.path / name / "file").touch()
    for name in ("adapter_model.safetensors", "new_embeddings.safetensors", "report.html", "notes.txt"):
        (run_dir.path / name).touch()
    return run_dir


def test_overwrite_removes_the_other_runs_files_and_no_others(left):
    left.make_room_for(OTHER, {})
    assert [path.name for path in left.path.iterdir()] == ["notes.txt"]


def test_overwrite_leaves_the_lock_it_runs_under(left):
    with RunLock(left.path, "other", on_lost=lambda: None):
        left.make_room_for(OTHER, {})
        assert (left.path / ".sft.lock.json").exists()


@pytest.mark.parametrize("key", ["model_name_or_path", "training_data_path"])
@pytest.mark.parametrize("name", ["base", "merged/model", "checkpoint-8"])
def test_overwrite_that_would_remove_what_the_run_reads_is_refused(left, key, name):
    before = sorted(left.path.rglob("*"))
    with pytest.raises(ConfigError, match=f"Config key '{key}' is .* and 'overwrite' would remove"):
        left.make_room_for(OTHER, {key: f"{left.path}/{name}"})
    assert sorted(left.path.rglob("*")) == before


def test_overwrite_leaves_the_same_runs_checkpoints(left):
    left.make_room_for(MINE, {"model_name_or_path": f"{left.path}/base"})
    assert (left.path / "checkpoint-8").exists()


def test_claim_removes_the_completion_mark_and_counts_attempts(run_dir):
    assert run_dir.claim(MINE) == 1
    run_dir.record(1, "started", gpus=2)
    run_dir.complete(RESULT)
    assert run_dir.claim(MINE) == 2
    assert not (run_dir.path / ".complete").exists()


def test_gpu_seconds_add_up_over_attempts_a_killed_one_counts_to_its_last_progress(run_dir):
    now = time.time()
    run_dir.record(1, "started", gpus=2, time=now - 100)
    run_dir.record(1, "ended", time=now - 90)
    run_dir.record(2, "started", gpus=2, time=now - 50)
    (run_dir.path / "progress.json").write_text("{}")
    __import__("os").utime(run_dir.path / "progress.json", (now - 45, now - 45))
    run_dir.claim(MINE)
    assert run_dir.gpu_seconds() == pytest.approx(2 * 10 + 2 * 5, abs=0.1)


def test_torn_last_line_of_attempts_is_left_out(run_dir):
    run_dir.record(1, "started", gpus=1)
    with (run_dir.path / "attempts.jsonl").open("a") as file:
        file.write('{"attempt": 2, "eve')
    assert [entry["attempt"] for entry in run_dir.attempts()] == [1]


def test_identity_ignores_how_a_run_is_watched(tmp_path):
    config = {"model_name_or_path": "org/model", "learning_rate": 1e-5}
    watched = {**config, "hang_timeout_s": 9, "overwrite": True, "resume_from_checkpoint": False}
    same = identify_run(config, data_sha256="d", run_id="r")
    assert identify_run(watched, data_sha256="d", run_id="r") == same
    assert identify_run({**config, "learning_rate": 1e-4}, data_sha256="d", run_id="r") != same


def test_identity_sees_other_weights_of_the_same_name(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    (tmp_path / "config.json").write_text(json.dumps({}))
    config = {"model_name_or_path": str(tmp_path)}
    one = identify_run(config, data_sha256="d", run_id="r")
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert identify_run(config, data_sha256="d", run_id="r") != one
