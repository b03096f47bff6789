"""The hang watch: who is silent, and for how much time that really passed for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from airflow_provider_sft.contract.errors import HangError
from tests.trainer.test_refusals import wait_for
from trainer.liveness import Liveness
from trainer.run_time import RunTime


def watch(liveness, beats, seconds, pids=None):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)
        liveness.check(beats() if callable(beats) else beats, pids or {})


def test_rank_that_gives_fewer_signs_than_the_others_is_named():
    liveness = Liveness([0, 1, 2], 0.3)
    with pytest.raises(HangError, match=r"^Rank 1 showed no sign of life for 0 s \(hang_timeout_s\)\.$"):
        watch(liveness, {0: 8, 1: 7, 2: 8}, 5)


def test_ranks_that_cannot_be_told_apart_are_all_named():
    with pytest.raises(HangError, match="^Ranks 2 and 3 showed no sign of life"):
        watch(Liveness([2, 3], 0.2), {2: 5, 3: 5}, 5)


def test_rank_that_never_gave_a_sign_is_named():
    with pytest.raises(HangError, match="^Rank 1 showed"):
        watch(Liveness([0, 1], 0.2), {0: 1}, 5)


def test_stopped_rank_is_named_whatever_the_others_are_at():
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        sleeper.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED)
        with pytest.raises(HangError, match=r"^Rank 1 is stopped \(SIGSTOP\) and showed no sign of life"):
            watch(Liveness([0, 1], 0.2), {0: 4, 1: 5}, 5, {0: os.getpid(), 1: sleeper.pid})
    finally:
        sleeper.kill()
        sleeper.wait()


def test_signs_of_life_end_the_silence_whatever_the_clock_says():
    counts = iter(range(10_000, 0, -1))  # a number that falls is a sign as well
    watch(Liveness([0], 0.2), lambda: {0: next(counts)}, 0.8)


def test_hang_timeout_of_0_waits_for_ever():
    watch(Liveness([0], 0), {0: 1}, 0.3)


RANK = """
import os, time
from trainer.rank import RankChannel, RankOutcome
channel = RankChannel.open(os.environ)
for _ in range(40):
    channel.beat()
    time.sleep(0.05)
channel.report(RankOutcome(0, 0, facts={"steps": 40}))
"""
PARENT = """
import os, pathlib, sys
from trainer.launch import Launch
from trainer.nodes import Nodes
from trainer.rank import ParentChannel, RunOrder
from trainer.stop import StopRequest
from trainer.supervise import Supervisor
scratch = pathlib.Path(sys.argv[1])
channel = ParentChannel(scratch, RunOrder({}, "", "", 1, "", ""))
launch = Launch([sys.executable, "-c", sys.argv[2]], {}, 1, 0, "none", Nodes())
env = {**os.environ, "SFT_SCRATCH_DIR": str(scratch)}
print(Supervisor(launch, env, channel, StopRequest(), 2.0).run().facts)
"""


def test_run_that_was_frozen_for_longer_than_the_hang_timeout_goes_on(tmp_path):
    """Parent and rank: a frozen container, a host that slept."""
    command = [sys.executable, "-c", PARENT, str(tmp_path), RANK]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "heartbeat-0").exists, poll_s=0.01)
    tree = [*psutil.Process(parent.pid).children(recursive=True), parent]
    for process in tree:
        process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    for process in tree:
        process.send_signal(signal.SIGCONT)
    out, err = parent.communicate()
    assert out == "{'steps': 40}\n", err[-2000:]


def test_run_time_counts_what_passes_but_a_long_pause_as_one_tick():
    started = time.monotonic()
    clock = RunTime(0.5)
    for pause_s in (0.1, 0.2, 1.5):
        time.sleep(pause_s)
        clock.tick()
    passed = time.monotonic() - started
    assert 0.8 <= clock.seconds <= passed - 0.99
