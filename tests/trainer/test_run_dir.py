"""What a run keeps in its output_dir, and what `overwrite` removes there."""

from __future__ import annotations

import time

import pytest

from airflow_provider_sft.contract.errors import AccessDeniedError, ConfigError
from trainer.lock import RunLock
from trainer.run_dir import RunDir
from trainer.takeover import complete

MINE = {"version": 2, "run_id": "dag/run/task"}
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


@pytest.fixture
def left(run_dir):
    """A finished run's directory, export and prepared rows included."""
    run_dir.claim(MINE)
    complete(run_dir, RESULT)
    for name in ("checkpoint-8", "merged", "base", "vllm", ".export", ".sft.prepared", "train_dataset"):
        (run_dir.path / name).mkdir()
        (run_dir.path / name / "file").touch()
    for name in ("adapter_model.safetensors", "new_embeddings.safetensors", "report.html", "notes.txt"):
        (run_dir.path / name).touch()
    return run_dir


def test_overwrite_removes_the_other_runs_files_and_no_others(left):
    left.make_room({}, [])
    assert [path.name for path in left.path.iterdir()] == ["notes.txt"]


def test_overwrite_leaves_the_lock_it_runs_under(left):
    with RunLock(left.path, "other", on_lost=lambda: None):
        left.make_room({}, [])
        assert (left.path / ".sft.lock.json").exists()


@pytest.mark.parametrize("key", ["model_name_or_path", "training_data_path"])
@pytest.mark.parametrize("name", ["base", "merged/model", "checkpoint-8"])
def test_overwrite_that_would_remove_what_the_run_reads_is_refused(left, key, name):
    before = sorted(left.path.rglob("*"))
    with pytest.raises(ConfigError, match=f"Config key '{key}' is .* and 'overwrite' would remove"):
        left.make_room({key: f"{left.path}/{name}"}, [])
    assert sorted(left.path.rglob("*")) == before


def test_claim_removes_the_completion_mark_and_counts_attempts(run_dir):
    assert run_dir.claim(MINE) == 1
    run_dir.record(1, "started", gpus=2)
    complete(run_dir, RESULT)
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
