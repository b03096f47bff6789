"""A run of any technique that is stopped and run again ends with the weights of one that was not."""

from __future__ import annotations

import signal

import pytest

from tests.trainer.test_refusals import wait_for
from tests.trainer.test_resume import assert_bit_equal, step_reached, weights

TECHNIQUES = {
    "full": {"peft_method": "none", "learning_rate": 1e-3},
    "dora": {"use_dora": True, "target_modules": ["q_proj", "up_proj"]},
    "lora with modules_to_save": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    "lora with added tokens": {"add_special_tokens": ["<|a|>"], "trainable_token_indices": [400]},
    "alora": {"peft_method": "alora", "alora_invocation_string": "### Label:", "target_modules": ["q_proj"]},
    "prompt tuning": {"peft_method": "pt", "num_virtual_tokens": 4},
}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_stopped_run_goes_on_and_ends_bit_equal(lora_config, start_trainer, run_trainer, tmp_path, name):
    config = {**lora_config, "max_steps": 30, "save_steps": 5, "report": False, **TECHNIQUES[name]}
    run_trainer({**config, "output_dir": str(tmp_path / "undisturbed")})
    first = start_trainer(config)
    wait_for(lambda: step_reached(tmp_path / "out") >= 6)
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() == 206, first.stderr[-3000:]
    second = run_trainer(config)
    assert second.result["resumed_from_step"] == first.result["last_checkpoint_step"]
    assert_bit_equal(weights(tmp_path / "out"), weights(tmp_path / "undisturbed"))
