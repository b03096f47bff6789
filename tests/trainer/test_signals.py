"""SIGTERM at any time: 206, what can be saved is saved, and a second one ends everything at once."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.trainer.test_refusals import wait_for
from tests.trainer.test_resume import is_alive, rank_group, step_reached
from trainer.checkpoints import find_flaw
from trainer.stop import StopRequest


@pytest.fixture
def endless(lora_config):
    return {**lora_config, "max_steps": 100_000, "save_strategy": "no"}


SIGNS = {
    "": "the parent imports",
    ".sft.lock.json": "the parent has the directory",
    "attempts.jsonl": "a rank is started",
    ".sft.prepared": "a rank prepares rows",
    ".sft.statistics.json": "a rank loads the model",
}


def test_sigterm_before_the_first_step_is_206_and_never_a_success(start_trainer, lora_config, tmp_path):
    sign = random.choice(list(SIGNS))
    run = start_trainer(lora_config)
    wait_for(lambda: catches_sigterm(run.process.pid), poll_s=0.001)
    if sign:
        wait_for((tmp_path / "out" / sign).exists, poll_s=0.002)
    else:
        time.sleep(random.uniform(0, 0.2))
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 206, SIGNS[sign]
    assert run.result["status"] == "interrupted"
    assert not (tmp_path / "out" / ".complete").exists()


def catches_sigterm(pid: int) -> bool:
    """By the mask of caught signals: bit n - 1 stands for signal n."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    [mask] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


def is_saving(out):
    with contextlib.suppress(FileNotFoundError):
        return any((out / ".staging").glob("checkpoint-*"))
    return False


def test_sigterm_while_saving_leaves_whole_checkpoints_only(start_trainer, endless, tmp_path):
    """Told by a service manager and a worker, of one cause; then the worker is killed outright: that is one request."""
    out = tmp_path / "out"
    run = start_trainer({**endless, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 3})
    wait_for(lambda: is_saving(out), poll_s=0.001)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
        run.process.send_signal(number)
    assert run.wait() == 206
    assert run.result["reason"].endswith("and saved.")
    checkpoints = {path.name: find_flaw(path) for path in out.glob("checkpoint-*")}
    assert set(checkpoints.values()) == {None}
    assert f"checkpoint-{run.result['steps']}" in checkpoints


def test_second_sigterm_ends_everything_at_once_and_older_checkpoints_stay_whole(
    start_trainer, endless, tmp_path
):
    """The rank is stopped: it would save when it goes on, and nobody waits for that."""
    out = tmp_path / "out"
    run = start_trainer({**endless, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2})
    wait_for(lambda: step_reached(out) >= 5)
    below = psutil.Process(run.process.pid).children(recursive=True)
    psutil.Process(rank_group(run.process.pid)).suspend()
    run.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(timeout_s=5) == 206
    assert run.result["reason"].startswith("Ended at once by a second signal")
    assert [process for process in below if is_alive(process)] == []
    checkpoints = {path.name: find_flaw(path) for path in out.glob("checkpoint-*")}
    assert set(checkpoints.values()) == {None}


def test_second_sigterm_where_no_rank_runs_ends_the_parent_at_once(start_trainer, lora_config, tmp_path):
    """A lock of a run on another host: whether that run lives takes seconds to tell."""
    (tmp_path / "out").mkdir()
    holder = {"token": "a", "run_id": "b", "host": "elsewhere", "boot": "c", "pid": 1, "beat": 1}
    (tmp_path / "out" / ".sft.lock.json").write_text(json.dumps(holder))
    run = start_trainer(lora_config)
    wait_for((tmp_path / "out" / ".sft.lock").exists, poll_s=0.01)
    run.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(timeout_s=3) == 206
    assert not (tmp_path / "out" / ".complete").exists()


def test_sighup_asks_once_however_often_it_comes_and_sigterm_after_it_is_the_second():
    """The worker was killed outright: nobody else will ask for a save."""
    stop, heard = StopRequest(), []
    stop.on_signal = heard.append
    stop.install()
    try:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        assert heard == [1]
        time.sleep(0.3)
        signal.raise_signal(signal.SIGTERM)
    finally:
        StopRequest.uninstall()
    assert heard == [1, 2]
