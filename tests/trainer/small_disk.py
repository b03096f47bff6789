"""A trainer on a volume that fills up: `unshare -rm python -m tests.trainer.small_disk ORDER.json`, in namespaces of its own.

The order says when the volume is filled and how often the trainer is started; what is found after each start is printed
as one JSON line. A test reads it from outside, where the mount cannot be seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.checkpoints import find_flaw


def run_on_small_disk(order: dict, tmp_path: Path) -> list[dict]:
    """
    :param order: config (its output_dir lies below `volume`), volume, size_mb, fill_when (a path), free_bytes, starts
    """
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    try:
        refused = subprocess.run(probe, capture_output=True, text=True, check=False).stderr
    except FileNotFoundError:
        refused = "unshare is not installed"
    if refused:
        pytest.skip(f"No small volume can be mounted here: {refused.strip()}")
    (tmp_path / "order.json").write_text(json.dumps(order))
    Path(order["volume"]).mkdir()
    argv = ["unshare", "-rm", sys.executable, "-m", "tests.trainer.small_disk", str(tmp_path / "order.json")]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def main(order: dict) -> None:
    volume = Path(order["volume"])
    size = f"size={order['size_mb']}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(volume)], check=True)
    for number in range(order["starts"]):
        found = start(order, fills=number == 0)
        print(json.dumps(found), flush=True)
        (volume / "filler").unlink(missing_ok=True)
    for path in Path(order["config"]["output_dir"]).glob("*.safetensors"):
        (volume.parent / "kept").mkdir(exist_ok=True)
        (volume.parent / "kept" / path.name).write_bytes(path.read_bytes())


def start(order: dict, *, fills: bool) -> dict:
    volume, out = Path(order["volume"]), Path(order["config"]["output_dir"])
    config, message = volume.parent / "config.json", volume.parent / "message.json"
    config.write_text(json.dumps(order["config"]))
    env = {
        **os.environ,
        "SFT_TRAINER_CONFIG_JSON_PATH": str(config),
        "TERMINATION_LOG_FILE": str(message),
        "OMP_NUM_THREADS": "1",
    }
    trainer = subprocess.Popen([sys.executable, "-P", "-m", "trainer"], env=env, stdout=subprocess.DEVNULL)
    while fills and trainer.poll() is None:
        if Path(order["fill_when"]).exists():
            fill(volume, order["free_bytes"])
            break
        time.sleep(0.002)
    return {
        "code": trainer.wait(),
        "result": json.loads(message.read_text()),
        "checkpoints": {path.name: find_flaw(path) for path in out.glob("checkpoint-*")},
        "names": sorted(path.name for path in out.iterdir()),
    }


def fill(volume: Path, free_bytes: int) -> None:
    with (volume / "filler").open("wb") as file:
        usage = os.statvfs(volume)
        os.posix_fallocate(file.fileno(), 0, usage.f_bavail * usage.f_frsize - free_bytes)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
