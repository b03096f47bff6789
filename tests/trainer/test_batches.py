"""`dataloader_drop_last` with fewer rows than one batch."""

from __future__ import annotations

import pytest

from airflow_provider_sft.contract.errors import DataError
from tests import tiny
from tests.trainer.here import train_here


@pytest.mark.parametrize(
    "keys",
    [{"max_steps": 4}, {"max_steps": -1, "num_train_epochs": 1}, {"gradient_accumulation_steps": 4}, {"packing": True, "max_length": 512}],
    ids=str,
)  # fmt: skip
def test_rows_that_fill_no_batch_are_65_before_the_model_loads(lora_config, tmp_path, keys):
    rows = tiny.write_tweets(tmp_path / "few.jsonl", rows=3)
    config = {**lora_config, "training_data_path": str(rows), "dataloader_drop_last": True, **keys}
    with pytest.raises(DataError, match=r"dataloader_drop_last drops every row: there are \d to train on"):
        train_here(config, tmp_path / "scratch")


def test_rows_that_fill_no_batch_of_the_evaluation_are_65(lora_config, tmp_path):
    rows = tiny.write_tweets(tmp_path / "few.jsonl", rows=3)
    config = {**lora_config, "validation_data_path": str(rows), "dataloader_drop_last": True}
    with pytest.raises(DataError, match=r"there are 3 to evaluate on .* per_device_eval_batch_size is 8"):
        train_here(config, tmp_path / "scratch")
