"""A disk that refuses now and then, by libfiu: no attempt ends in a false success, and what is kept is whole."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from tests.trainer.test_resume import assert_bit_equal, weights
from trainer.checkpoints import find_flaw

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
FAILURES, MAX_ATTEMPTS = 3, 9
# How often: a run writes thousands of times, flushes hundreds of times, renames dozens of times.
FAULTS = [
    ("posix/io/rw/write", errno.ENOSPC, 0.003, 201),
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
    # libfiu can lock itself up while libraries are loaded: a hang then, which is another attempt.
    config = {
        **lora_config,
        "hang_timeout_s": 60,
        "max_steps": 60,
        "save_steps": 5,
        "lora_dropout": 0.2,
        "save_total_limit": 3,
    }
    undisturbed, ends = tmp_path / "undisturbed", []
    run_trainer({**config, "output_dir": str(undisturbed)})
    out = tmp_path / "out-0"
    while len(ends) < MAX_ATTEMPTS and sum(map(bool, ends)) < FAILURES:
        run = start_trainer({**config, "output_dir": str(out)}, prefix=failing(point, number, probability))
        ends.append(run.wait())
        assert ends[-1] in (0, code, 205), run.stderr[-4000:]
        assert {path.name: find_flaw(path) for path in out.glob("checkpoint-*") if find_flaw(path)} == {}
        assert (out / ".complete").exists() == (ends[-1] == 0)
        if ends[-1] == 0:
            assert_bit_equal(weights(out), weights(undisturbed))
            out = tmp_path / f"out-{len(ends)}"
    print(f"{point} {os.strerror(number)}: {ends}")
    assert code in ends, "libfiu made nothing fail"
    run_trainer({**config, "output_dir": str(out)})
    assert_bit_equal(weights(out), weights(undisturbed))
