"""P1: whenever the export is killed, whoever looks finds the old adapter or the new one, and the next run is right.

At random moments, and at every single system call that changes a directory.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.trainer.export.handmade import make_adapter, make_base
from trainer.export import export_for_vllm

FILES = ("adapter_config.json", "adapter_model.safetensors", "new_embeddings.safetensors")
# Added by the export where an adapter from elsewhere has none.
RECORD = "added_tokens_info.json"
KILLS = 120
# Dies just before its n-th change to a directory, without a chance to clean up.
KILL_AT = """
import os, signal, sys
left = int(sys.argv[1])
def counted(call):
    def wrapper(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapper
for name in ("link", "symlink", "replace", "rename", "unlink", "rmdir", "mkdir", "fsync"):
    setattr(os, name, counted(getattr(os, name)))
if sys.argv[2] == "no-links":
    def refuse(*args, **kwargs):
        raise OSError(95, "no links here")
    os.link = os.symlink = refuse
from trainer.export.__main__ import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """The adapter before and after, and what a reader sees of each."""
    root = tmp_path_factory.mktemp("kill")
    old = make_adapter(root / "old", make_base(root / "base"))
    new = shutil.copytree(old, root / "new")
    export_for_vllm(new, num_new_tokens=3)
    return old, seen(old), seen(new)


def seen(directory: Path) -> tuple[str, ...]:
    """As a server opens it: by name, whatever stands behind the name."""
    return tuple(
        hashlib.sha256((directory / name).read_bytes()).hexdigest() if (directory / name).is_file() else ""
        for name in FILES
    )


def run_again(directory: Path) -> None:
    arguments = [sys.executable, "-m", "trainer.export", str(directory), "--num-new-tokens", "3"]
    assert subprocess.run(arguments, check=False, capture_output=True).returncode == 0


def test_killed_at_random_moments_leaves_the_old_adapter_or_the_new(states, tmp_path):
    source, old, new = states
    chance, found = random.Random(7), {old: 0, new: 0}
    command = [sys.executable, "-m", "trainer.export", "DIR", "--num-new-tokens", "3"]
    shutil.copytree(source, tmp_path / "timed")
    started_at = time.monotonic()
    run_again(tmp_path / "timed")
    longest_s = (time.monotonic() - started_at) * 1.2
    for index in range(KILLS):
        directory = shutil.copytree(source, tmp_path / str(index))
        process = subprocess.Popen([str(directory) if part == "DIR" else part for part in command], stdout=-3)
        time.sleep(chance.uniform(longest_s / 3, longest_s))
        process.send_signal(signal.SIGKILL)
        process.wait()
        found[seen(directory)] += 1
        if index % 10 == 0:
            run_again(directory)
            assert seen(directory) == new
        shutil.rmtree(directory)
    assert found[old] + found[new] == KILLS


def test_killed_before_every_single_change_leaves_the_old_adapter_or_the_new(states, tmp_path):
    source, old, new = states
    order = []
    for step in range(200):
        directory = shutil.copytree(source, tmp_path / str(step))
        done = kill_at(step, directory, "links")
        order.append(seen(directory))
        assert order[-1] in (old, new)
        run_again(directory)
        assert seen(directory) == new
        assert sorted(path.name for path in directory.iterdir()) == sorted((*FILES, RECORD))
        assert not any(path.is_symlink() for path in directory.iterdir())
        if done:
            break
    assert len(order) > 20
    assert order == sorted(order, key=[old, new].index)


def test_without_links_a_kill_may_hide_the_adapter_and_never_mixes_it(states, tmp_path):
    source, old, new = states
    for step in range(200):
        directory = shutil.copytree(source, tmp_path / str(step))
        done = kill_at(step, directory, "no-links")
        found = seen(directory)
        assert found in (old, new) or found[0] == ""
        run_again(directory)
        assert seen(directory) == new
        if done:
            return
    raise AssertionError("never finished")


def kill_at(step: int, directory: Path, links: str) -> bool:
    """Whether the export came to its end before its `step`-th change."""
    arguments = [sys.executable, "-c", KILL_AT, str(step), links, str(directory), "--num-new-tokens", "3"]
    process = subprocess.run(arguments, check=False, capture_output=True)
    assert process.returncode in (0, -signal.SIGKILL), process.stderr.decode()
    return process.returncode == 0


def test_killed_while_a_whole_model_is_replaced_leaves_a_whole_model(states, tmp_path):
    source, *_ = states
    directory = shutil.copytree(source, tmp_path / "adapter")
    merge = [str(directory), "--num-new-tokens", "3", "--mode", "merged"]
    subprocess.run([sys.executable, "-m", "trainer.export", *merge], check=True, capture_output=True)
    whole = {path.name: path.read_bytes() for path in (directory / "merged").iterdir()}
    for step in range(60):
        code = subprocess.run(
            [sys.executable, "-c", KILL_AT, str(step), "links", *merge], check=False
        ).returncode
        assert {path.name: path.read_bytes() for path in (directory / "merged").iterdir()} == whole
        if code == 0:
            return
    raise AssertionError("never finished")
