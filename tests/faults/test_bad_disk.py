"""A disk that refuses now and then, by libfiu: no attempt ends in a false success, and what is kept is whole."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from tests.trainer.test_resume import assert_bit_equal, weights
from trainer.checkpoints import find_flaw

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
ATTEMPTS = 6
# How often: a run writes thousands of times, flushes hundreds of times, renames dozens of times.
FAULTS = [
    ("posix/io/rw/write", errno.ENOSPC, 0.0005, 201),
    ("posix/io/sync/fsync", errno.EIO, 0.01, 200),
    ("posix/io/sync/fsync", errno.ENOSPC, 0.01, 201),
    ("posix/io/dir/rename", errno.EIO, 0.02, 200),
]


def failing(point: str, number: int, probability: float) -> list[str]:
    if not shutil.which("fiu-run"):
        pytest.skip("fiu-run is not installed: apt-get install fiu-utils")
    command = f"enable_random name={point},probability={probability},failinfo={number}"
    return ["fiu-run", "-x", "-f", "", "-c", command]


@pytest.mark.parametrize(("point", "number", "probability", "code"), FAULTS)
def test_disk_that_refuses_now_and_then_costs_attempts_and_no_weights(
    lora_config, start_trainer, run_trainer, tmp_path, point, number, probability, code
):
    config = {**lora_config, "max_steps": 60, "save_steps": 5, "lora_dropout": 0.2, "save_total_limit": 3}
    out, ends = tmp_path / "out", []
    for _ in range(ATTEMPTS):
        run = start_trainer(config, prefix=failing(point, number, probability))
        ends.append(run.wait())
        assert ends[-1] in (0, code), run.stderr[-4000:]
        assert {path.name: find_flaw(path) for path in out.glob("checkpoint-*") if find_flaw(path)} == {}
        assert (out / ".complete").exists() == (ends[-1] == 0)
    print(f"{point} {os.strerror(number)}: {ends}")
    run_trainer(config)
    run_trainer({**config, "output_dir": str(tmp_path / "undisturbed")})
    assert_bit_equal(weights(out), weights(tmp_path / "undisturbed"))
