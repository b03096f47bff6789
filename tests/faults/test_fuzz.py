"""300 random damages; their seeds go on where the last run of this test stopped, unless SFT_FAULTS_SEED names the first."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.trainer.fuzz import assert_in_the_table, damage_checkpoint, end_after

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
DAMAGES = 300
# `make test` has the seeds before it.
FIRST_SEED = 1000
LAST_SEED_FILE = Path(__file__).parents[2] / ".cache" / "faults-seed"


def first_seed() -> int:
    if seed := os.environ.get("SFT_FAULTS_SEED"):
        return int(seed)
    return int(LAST_SEED_FILE.read_text()) + 1 if LAST_SEED_FILE.exists() else FIRST_SEED


def test_random_damages_end_in_one_sentence_with_a_code_of_the_table(tmp_path, tiny_model_dir, caplog):
    first = first_seed()
    for seed in range(first, first + DAMAGES):
        damaged, result = end_after(seed, tmp_path / "run", tiny_model_dir)
        print(
            f"SFT_FAULTS_SEED={seed}: {damaged} -> {result['exit_code']} {result['reason']:.100}", flush=True
        )
        assert_in_the_table(result)
        assert "Unexpected failure" not in caplog.text
        damage_checkpoint(seed, tmp_path / "checkpoints")
        shutil.rmtree(tmp_path / "run")
        shutil.rmtree(tmp_path / "checkpoints")
        LAST_SEED_FILE.parent.mkdir(exist_ok=True)
        LAST_SEED_FILE.write_text(str(seed))
