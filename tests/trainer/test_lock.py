"""One writer an output_dir, proven between real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from airflow_provider_sft.contract.errors import LockedError
from trainer import lock
from trainer.lock import RECORD_FILE, RunLock

HOLD = """
import sys, time
from pathlib import Path
from trainer.lock import RunLock
with RunLock(Path(sys.argv[1]), "dag/run/task/-1", on_lost=lambda: None):
    print("held", flush=True)
    time.sleep(60)
"""


def take(directory):
    return RunLock(directory, "mine", on_lost=lambda: None)


@contextlib.contextmanager
def holding(directory):
    """A living process that holds the lock, as its parent does while a run lasts."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def holder(tmp_path):
    with holding(tmp_path) as process:
        yield process


def test_lock_held_by_a_living_run_is_refused_naming_it(tmp_path, holder):
    with pytest.raises(LockedError, match=r"is held by another run \(dag/run/task/-1\)"), take(tmp_path):
        pass


def test_lock_of_a_killed_run_on_this_host_is_taken_over_at_once(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    started = time.monotonic()
    with take(tmp_path):
        assert time.monotonic() - started < lock._STALE_S / 2


def test_lock_left_by_another_host_is_taken_over_when_its_beat_stands_still(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_STALE_S", 1.0)
    record = {"token": "t", "host": "gone", "boot": "other", "pid": os.getpid(), "beat": 7, "run_id": "r"}
    (tmp_path / RECORD_FILE).write_text(json.dumps(record))
    with take(tmp_path):
        assert json.loads((tmp_path / RECORD_FILE).read_text())["run_id"] == "mine"


def test_lock_of_another_host_that_still_beats_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT_S", 0.2)
    beat = """
import json, sys, time
for beat in range(100):
    open(sys.argv[1] + ".new", "w").write(json.dumps({"token": "t", "host": "h", "boot": "b", "pid": 1, "beat": beat}))
    import os; os.replace(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(0.1)
"""
    process = subprocess.Popen([sys.executable, "-c", beat, str(tmp_path / RECORD_FILE)])
    try:
        while not (tmp_path / RECORD_FILE).exists():
            time.sleep(0.02)
        with pytest.raises(LockedError), take(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()


def test_lock_taken_over_by_another_run_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT_S", 0.05)
    lost = []
    with RunLock(tmp_path, "mine", on_lost=lambda: lost.append(True)):
        (tmp_path / RECORD_FILE).write_text(json.dumps({"token": "somebody else"}))
        deadline = time.monotonic() + 5
        while not lost and time.monotonic() < deadline:
            time.sleep(0.02)
    assert lost
    assert json.loads((tmp_path / RECORD_FILE).read_text())["token"] == "somebody else"


def test_released_lock_leaves_no_record(tmp_path):
    with take(tmp_path):
        assert (tmp_path / RECORD_FILE).exists()
    assert not (tmp_path / RECORD_FILE).exists()
