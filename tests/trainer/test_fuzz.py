"""Random damage ends in one sentence with a code of the table. `make faults` goes on with other seeds."""

from __future__ import annotations

import pytest

from tests.trainer.fuzz import assert_in_the_table, damage_checkpoint, end_after


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_ends_in_one_sentence_with_a_code_of_the_table(seed, tmp_path, tiny_model_dir, caplog):
    damaged, result = end_after(seed, tmp_path / "run", tiny_model_dir)
    print(damaged, result["exit_code"], result["reason"])
    assert_in_the_table(result)
    assert "Unexpected failure" not in caplog.text


@pytest.mark.parametrize("seed", range(10))
def test_random_damage_to_a_checkpoint_leaves_the_one_before_it(seed, tmp_path):
    _, said = damage_checkpoint(seed, tmp_path / "run")
    assert len(said) <= 1
