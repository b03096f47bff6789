"""Disturb runs at random points, start each again until it finishes, and compare what it leaves."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.trainer.test_resume import assert_bit_equal, step_reached, weights
from trainer.checkpoints import find_flaw

Start = Callable[..., Any]
# Until a model is loaded there is no step to wait for; a point in this time is as good as another.
_START_UP_S = 6.0
_POLL_S = 0.002


class Campaign:
    """
    :param start: starts a trainer with a config and an environment
    :param disturb: what is done to a run at its point
    """

    def __init__(
        self, start: Start, config: dict, env: dict[str, str], rng: random.Random, root: Path
    ) -> None:
        self.start, self.config, self.env, self.rng, self.root = start, config, env, rng, root
        self.points: list[str] = []
        undisturbed = self._start(root / "undisturbed")
        assert undisturbed.wait(timeout_s=900) == 0, undisturbed.stderr[-4000:]
        self.expected = weights(root / "undisturbed")

    def run(self, num_points: int, disturb: Callable[[Any, random.Random], str], codes: set[int]) -> None:
        """Until `num_points` have struck; a run that finished is compared, and the next begins in a new directory."""
        number = 0
        while len(self.points) < num_points:
            number += 1
            out = self.root / f"run-{number}"
            self._run_to_its_end(out, disturb, codes, num_points)
            assert_bit_equal(weights(out), self.expected)
            print(f"{out.name}: bit-equal after {len(self.points)} points")

    def _run_to_its_end(
        self, out: Path, disturb: Callable[[Any, random.Random], str], codes: set[int], num_points: int
    ) -> None:
        while True:
            run = self._start(out)
            point = self._wait_for_a_point(run, out) if len(self.points) < num_points else ""
            if point and run.process.poll() is None:
                done = disturb(run, self.rng)
                self.points.append(f"{done} at {point}")
                print(f"{len(self.points)}: {self.points[-1]}", flush=True)
            code = run.wait(timeout_s=900)
            flaws = {path.name: find_flaw(path) for path in out.glob("checkpoint-*")}
            assert set(flaws.values()) <= {None}, flaws
            if code == 0:
                assert (out / ".complete").exists()
                return
            assert code in codes, run.stderr[-4000:]
            assert not (out / ".complete").exists()

    def _start(self, out: Path) -> Any:
        return self.start({**self.config, "output_dir": str(out)}, **self.env)

    def _wait_for_a_point(self, run: Any, out: Path) -> str:
        """A random moment of the start, or a random moment of a random step that is still to come."""
        started = time.time()
        if self.rng.random() < 0.25:
            delay_s = self.rng.uniform(0, _START_UP_S)
            time.sleep(delay_s)
            return f"{delay_s:.2f} s"
        last, before = self.config["max_steps"], step_reached(out)
        target = self.rng.randint(min(before + 1, last), last)
        while run.process.poll() is None and _step_since(started, out) < target:
            time.sleep(_POLL_S)
        time.sleep(self.rng.uniform(0, 0.1))
        return f"step {target}"


def _step_since(started: float, out: Path) -> int:
    """What the attempt before reached is still to be read until this one has logged a step."""
    with contextlib.suppress(FileNotFoundError):
        return step_reached(out) if (out / "progress.json").stat().st_mtime > started else 0
    return 0


def kill_all(run: Any, _rng: random.Random) -> str:
    """As when a container is killed: the parent and everything below it."""
    below = psutil.Process(run.process.pid).children(recursive=True)
    for process in (run.process, *below):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            process.kill()
    psutil.wait_procs(below, timeout=30)
    return "SIGKILL"


def kill_parent(run: Any, _rng: random.Random) -> str:
    """The parent alone: its ranks must not go on beside the next attempt."""
    run.process.kill()
    return "SIGKILL of the parent"


def kill_any(run: Any, rng: random.Random) -> str:
    """The container, the parent, or one process below it."""
    kind = rng.choice(["all", "all", "parent", "rank"])
    if kind == "rank" and (below := psutil.Process(run.process.pid).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            rng.choice(below).kill()
        return "SIGKILL of a process below"
    return kill_parent(run, rng) if kind == "parent" else kill_all(run, rng)


def terminate(run: Any, _rng: random.Random) -> str:
    run.process.send_signal(signal.SIGTERM)
    return "SIGTERM"
