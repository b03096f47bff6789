"""Fixtures that most tests share: the tiny model, the tweets, and the trainer as a subprocess."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from tests import tiny

pytest_plugins = ["tests.kube.fixtures"]


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One directory for all xdist workers of this test run."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def tiny_model_dir(shared_dir: Path) -> Path:
    """The tiny Llama, made once a test run and never written to."""
    directory = shared_dir / "tiny-llama"
    with FileLock(shared_dir / "tiny-llama.lock"):
        if not directory.exists():
            tiny.save_model(shared_dir / "tiny-llama.part").rename(directory)
    return directory


@pytest.fixture
def tweets(tmp_path: Path) -> Path:
    return tiny.write_tweets(tmp_path / "tweets.jsonl")


@pytest.fixture
def lora_config(tiny_model_dir: Path, tweets: Path, tmp_path: Path) -> dict:
    return tiny.lora_config(tiny_model_dir, tweets, tmp_path / "out")


class TrainerRun:
    """`python -m trainer` with a config, as a pod would start it.

    :param prefix: what the command line begins with, such as `unshare`
    """

    def __init__(
        self, config: dict | str, env: dict[str, str], termination_log: Path, prefix: Sequence[str] = ()
    ) -> None:
        text = config if isinstance(config, str) else json.dumps(config)
        self.termination_log = termination_log
        self.env = {
            **os.environ,
            "SFT_TRAINER_CONFIG_JSON_ENV_VAR": base64.b64encode(text.encode()).decode(),
            "TERMINATION_LOG_FILE": str(termination_log),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            **env,
        }
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-P", "-m", "trainer"],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.stdout = self.stderr = ""

    def wait(self, timeout_s: float = 240) -> int:
        self.stdout, self.stderr = self.process.communicate(timeout=timeout_s)
        return self.process.returncode

    @property
    def result(self) -> dict:
        return json.loads(self.termination_log.read_text())

    @property
    def progress(self) -> list[dict]:
        return [json.loads(line) for line in self.stdout.splitlines() if '"event":"progress"' in line]


@pytest.fixture
def start_trainer(tmp_path: Path) -> Iterator[Callable[..., TrainerRun]]:
    """Start a trainer process; whatever still runs at the end of the test is killed."""
    runs: list[TrainerRun] = []

    def start(config: dict | str, *, prefix: Sequence[str] = (), **env: str) -> TrainerRun:
        run = TrainerRun(config, env, tmp_path / f"termination-{len(runs)}.log", prefix)
        runs.append(run)
        return run

    yield start
    for run in runs:
        if run.process.poll() is None:
            # With all below it: what is left of a run holds its pipes open.
            for process in (*psutil.Process(run.process.pid).children(recursive=True), run.process):
                process.kill()
            run.process.communicate()


@pytest.fixture
def run_trainer(start_trainer: Callable[..., TrainerRun]) -> Callable[..., TrainerRun]:
    """Run a trainer to its end; `code` is the exit code that is expected."""

    def run(config: dict | str, *, code: int = 0, prefix: Sequence[str] = (), **env: str) -> TrainerRun:
        finished = start_trainer(config, prefix=prefix, **env)
        assert finished.wait() == code, finished.stderr[-4000:]
        return finished

    return run
