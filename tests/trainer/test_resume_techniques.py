"""A run of any technique that is run again from a checkpoint in its middle ends with the weights of one that was not."""

from __future__ import annotations

import pytest

from tests.trainer.here import train_here
from tests.trainer.test_resume import assert_bit_equal, weights

TECHNIQUES = {
    "full": {"peft_method": "none", "learning_rate": 1e-3},
    "dora": {"use_dora": True, "target_modules": ["q_proj", "up_proj"]},
    "lora with modules_to_save": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    "lora with added tokens": {"add_special_tokens": ["<|a|>"], "trainable_token_indices": [400]},
    "alora": {"peft_method": "alora", "alora_invocation_string": "### Label:", "target_modules": ["q_proj"]},
    "prompt tuning": {"peft_method": "pt", "num_virtual_tokens": 4},
}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_run_that_goes_on_from_its_middle_ends_bit_equal(lora_config, tmp_path, name):
    config = {**lora_config, "max_steps": 24, "save_steps": 8, "report": False, **TECHNIQUES[name]}
    train_here(config, tmp_path / "scratch")
    again = {**config, "output_dir": str(tmp_path / "again")}
    train_here(again, tmp_path / "scratch", resume_from=tmp_path / "out" / "checkpoint-8")
    assert not (tmp_path / "again" / "checkpoint-8").exists()
    assert_bit_equal(weights(tmp_path / "again"), weights(tmp_path / "out"))
