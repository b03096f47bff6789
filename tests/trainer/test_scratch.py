"""What a killed parent leaves in the temporary directory goes with the next run, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.trainer.here import run_here
from trainer.scratch import clear_scratch_of_the_dead, private_scratch

HOLD = "from trainer.scratch import private_scratch as p; import time\nwith p() as s: print(s, flush=True); time.sleep(60)"


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def holder(temporary):
    """Another process that has a scratch directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], env={**os.environ, "TMPDIR": str(temporary)}, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_scratch_directory_is_gone_after_its_run(temporary):
    with private_scratch() as scratch:
        (scratch / "run.json").touch()
        assert names(temporary) == [scratch.name]
    assert names(temporary) == []


def test_scratch_of_a_living_process_stays(temporary, holder):
    [theirs] = names(temporary)
    with private_scratch() as ours:
        assert names(temporary) == sorted([theirs, ours.name])


def test_scratch_of_a_killed_process_goes_with_the_next(temporary, holder):
    [theirs] = names(temporary)
    holder.kill()
    holder.wait()
    assert names(temporary) == [theirs]
    with private_scratch() as ours:
        assert names(temporary) == [ours.name]


def test_link_or_file_of_such_a_name_stays_with_what_it_names(temporary):
    kept = temporary / "precious"
    kept.mkdir()
    (kept / "file").touch()
    (temporary / "sft-run-link").symlink_to(kept)
    (temporary / "sft-run-file").touch()
    clear_scratch_of_the_dead(temporary)
    assert names(temporary) == ["precious", "sft-run-file", "sft-run-link"]
    assert (kept / "file").exists()


def test_directory_of_another_user_stays(temporary):
    if os.geteuid():
        pytest.skip("Only root can give a directory away.")
    theirs = temporary / "sft-run-theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, -1)
    clear_scratch_of_the_dead(temporary)
    assert theirs.exists()


def test_run_after_a_killed_one_leaves_nothing_in_the_temporary_directory(
    lora_config, temporary, holder, tmp_path
):
    holder.kill()
    holder.wait()
    assert any(temporary.glob("sft-run-*"))
    assert run_here({**lora_config, "training_data_path": "/nowhere"})["exit_code"] == 66
    assert not any(temporary.glob("sft-*"))
