"""What a container is to a run: PID 1, a memory limit, any user, a read-only root, no capabilities.

Made of the kernel's own parts; where this machine refuses one, the test is skipped with its words.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import psutil
import pytest

from tests.trainer.test_ranks import TWO
from tests.trainer.test_refusals import wait_for
from tests.trainer.test_resume import step_reached

PROJECT = Path(__file__).resolve().parents[2]
ANY_USER = 12345


def need(*command: str) -> None:
    """Skip in words what this machine refuses."""
    try:
        done = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"{error.filename} is not installed")
    if done.returncode:
        pytest.skip(f"`{' '.join(command)}` is refused here: {done.stderr.strip()}")


def test_sigterm_to_the_trainer_as_pid_1_saves(lora_config, start_trainer, tmp_path):
    """A container without an init process: Python as PID 1 ignores every signal that it has no handler for."""
    alone = ["unshare", "-rpf", "--mount-proc"]
    need(*alone)
    run = start_trainer({**lora_config, "max_steps": 100_000, "save_strategy": "no"}, prefix=alone)
    wait_for(lambda: step_reached(tmp_path / "out") >= 2)
    [pid_1] = psutil.Process(run.process.pid).children()
    pid_1.send_signal(signal.SIGTERM)
    assert run.wait() == 206
    assert run.result["last_checkpoint_step"] == run.result["steps"]


@pytest.mark.parametrize("init", ["catatonit", "tini", "dumb-init"])
def test_sigterm_to_an_init_process_reaches_the_trainer(lora_config, start_trainer, tmp_path, init):
    if not (path := shutil.which(init)):
        pytest.skip(f"{init} is not installed")
    need("unshare", "-rpf", "--mount-proc")
    config = {**lora_config, "max_steps": 100_000, "save_strategy": "no"}
    run = start_trainer(config, prefix=["unshare", "-rpf", "--mount-proc", path, "--"])
    wait_for(lambda: step_reached(tmp_path / "out") >= 2)
    [pid_1] = psutil.Process(run.process.pid).children()
    pid_1.send_signal(signal.SIGTERM)
    assert run.wait() == 206
    assert run.result["last_checkpoint_step"] == run.result["steps"]


@pytest.fixture
def limited():
    """A cgroup of 500 MiB, and the command line that makes it the container's own to what it runs."""
    v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    root = Path("/sys/fs/cgroup") if v2 else Path("/sys/fs/cgroup/memory")
    group = root / f"sft-test-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(500 * 2**20))
    except OSError as error:
        pytest.skip(f"No memory cgroup can be made here: {error}")
    need("unshare", "-m")
    script = f'echo $$ > {group}/cgroup.procs && mount --bind {group} {root} && exec "$@"'
    yield ["unshare", "-m", "sh", "-c", script, "sh"]
    wait_for(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


@pytest.fixture
def long_rows(lora_config, tmp_path):
    """64 rows of 512 tokens in one batch: more activations than a small container has."""
    text = "### Text: " + "thanks for the quick help " * 120
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"output": f"{text} ({number})"}) + "\n" for number in range(128)))
    more = {"training_data_path": str(path), "response_template": "### Text:", "peft_method": "none"}
    return {**lora_config, **more, "per_device_train_batch_size": 64}


@pytest.mark.parametrize("processes", [1, 2])
def test_memory_limit_that_is_reached_is_202_with_the_limit(long_rows, run_trainer, limited, processes):
    config = {**long_rows, "accelerate_launch_args": {"num_processes": processes}}
    run = run_trainer(config, code=202, prefix=limited, **TWO)
    assert (
        run.result["reason"] == "The container's memory limit of 0.5 GiB was reached and a rank was killed."
    )
    assert "per_device_train_batch_size" in run.result["advice"]


def test_memory_limit_below_the_estimate_is_202_before_the_model_loads(lora_config, run_trainer, limited):
    group = limited[4].split()[3].removesuffix("/cgroup.procs")
    limit = Path(group, "memory.limit_in_bytes")
    (limit if limit.exists() else Path(group, "memory.max")).write_text(str(300 * 2**20))
    run = run_trainer(lora_config, code=202, prefix=limited)
    assert "This container's memory is 300 MiB, the run needs at least 481 MiB" in run.result["reason"]


@pytest.fixture
def volume(tiny_model_dir):
    """A directory that group 0 may write, as OpenShift's random user finds a volume."""
    directory = Path(tempfile.mkdtemp(prefix="sft-volume-"))
    shutil.copytree(tiny_model_dir, directory / "model")
    (directory / "tmp").mkdir()
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o770 if path.is_dir() else 0o640)
    yield directory
    shutil.rmtree(directory)


def open_python(volume: Path) -> list[str]:
    """Commands that bring Python and this project out of directories that no other user may enter."""
    places = [Path(sys.base_prefix).resolve(), PROJECT, Path(sys.prefix).resolve()]
    kept = {
        place: volume / f"kept-{number}" for number, place in enumerate(places) if outermost_closed(place)
    }
    for aside in kept.values():
        aside.mkdir()
    return [
        *(f"mount --bind {place} {aside}" for place, aside in kept.items()),
        *(
            f"mount -t tmpfs -o mode=755 tmpfs {closed}"
            for closed in {outermost_closed(place) for place in kept}
        ),
        *(f"mkdir -p {place} && mount --bind {aside} {place}" for place, aside in kept.items()),
    ]


def outermost_closed(place: Path) -> Path | None:
    closed = [parent for parent in (place, *place.parents) if not parent.stat().st_mode & 0o001]
    return closed[-1] if closed else None


def test_any_user_without_capabilities_on_a_read_only_root_trains(lora_config, run_trainer, volume, tweets):
    if os.geteuid():
        pytest.skip("Only root can become another user.")
    become = ["setpriv", "--reuid", str(ANY_USER), "--regid", "0", "--clear-groups", "--no-new-privs"]
    become += ["--bounding-set=-all", "--inh-caps=-all"]
    need("unshare", "-m", *become)
    mounts = [f"mount --bind {volume} {volume}", *open_python(volume), "mount -o remount,bind,ro /"]
    script = " && ".join([*mounts, 'exec "$@"'])
    shutil.copy(tweets, volume / "tweets.jsonl")
    paths = {
        "model_name_or_path": volume / "model",
        "training_data_path": volume / "tweets.jsonl",
        "output_dir": volume / "out",
    }
    config = {**lora_config, **{key: str(path) for key, path in paths.items()}}
    env = {"TMPDIR": str(volume / "tmp"), "HOME": str(volume / "tmp")}
    env |= {"TERMINATION_LOG_FILE": str(volume / "termination.log")}
    run = run_trainer(config, prefix=["unshare", "-m", "sh", "-c", script, "sh", *become], **env)
    model = (volume / "out" / "adapter_model.safetensors").stat()
    assert (model.st_uid, model.st_mode & 0o044) == (ANY_USER, 0o044), run.stderr
    assert (volume / "out" / ".complete").exists()
    assert json.loads((volume / "termination.log").read_text())["status"] == "succeeded"
