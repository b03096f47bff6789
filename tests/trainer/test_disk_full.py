"""S2, S3: the volume fills up while a run saves."""

from __future__ import annotations

import pytest

from tests.trainer.here import train_here
from tests.trainer.small_disk import run_on_small_disk
from tests.trainer.test_resume import assert_bit_equal, weights


@pytest.fixture
def order(lora_config, tmp_path):
    """A volume of 32 MB that is filled to its last pages as soon as a run has saved its first checkpoint."""
    out = tmp_path / "volume" / "out"
    config = {
        **lora_config,
        "output_dir": str(out),
        "logging_strategy": "no",
        "max_steps": 60,
        "save_steps": 5,
    }
    return {
        "config": config,
        "volume": str(tmp_path / "volume"),
        "size_mb": 32,
        "fill_when": str(out / "checkpoint-5"),
        "free_bytes": 64 * 1024,
        "starts": 2,
    }


def test_full_volume_while_a_checkpoint_is_saved_is_201_and_the_run_resumes_when_there_is_room(
    order, tmp_path
):
    full, again = run_on_small_disk(order, tmp_path)
    assert full["code"] == 201
    assert "No space left on the volume" in full["result"]["reason"]
    assert full["checkpoints"]
    assert set(full["checkpoints"].values()) == {None}
    assert not {".complete", ".staging"} & set(full["names"])
    assert (again["code"], again["result"]["attempt"]) == (0, 2)
    assert again["result"]["resumed_from_step"] == full["result"]["last_checkpoint_step"]
    train_here({**order["config"], "output_dir": str(tmp_path / "undisturbed")}, tmp_path / "scratch")
    assert_bit_equal(weights(tmp_path / "kept"), weights(tmp_path / "undisturbed"))


def test_full_volume_at_the_final_save_is_201_without_a_completion_mark_or_half_a_model(order, tmp_path):
    order["config"] |= {"save_strategy": "no", "peft_method": "none"}
    order |= {"fill_when": f"{order['config']['output_dir']}/.sft.statistics.json", "starts": 1}
    [full] = run_on_small_disk(order, tmp_path)
    assert full["code"] == 201
    assert "No space left on the volume" in full["result"]["reason"]
    assert ".complete" not in full["names"]
    assert not [name for name in full["names"] if "safetensors" in name]
