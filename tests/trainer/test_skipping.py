"""What a resume costs does not grow with the rows behind it: none of them is read again."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig

from trainer.callbacks import FiniteCallback
from trainer.checkpoints import CheckpointStore
from trainer.data.batching import PaddedCollator
from trainer.engine import Engine

BATCH = 4


def watched_rows(count):
    """Rows that remember in `read` which of them were."""
    read = []

    def note(batch):
        read.extend(batch["row"])
        return {"input_ids": batch["tokens"], "labels": batch["tokens"]}

    rows = Dataset.from_dict({"row": range(count), "tokens": [[10, 11 + i % 100, 12] for i in range(count)]})
    return rows.with_transform(note), read


@pytest.fixture
def train(tiny_model_dir, tmp_path):
    def train(count, *, resume=None):
        rows, read = watched_rows(count)
        args = SFTConfig(
            output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
            max_length=None, remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True},
            max_steps=40, save_strategy="steps", save_steps=30, per_device_train_batch_size=BATCH, disable_tqdm=True,
        )  # fmt: skip
        engine = Engine(
            model=AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32),
            args=args,
            train_dataset=rows,
            data_collator=PaddedCollator(),
            processing_class=AutoTokenizer.from_pretrained(tiny_model_dir),
            store=CheckpointStore(tmp_path),
            facts={},
            finite=FiniteCallback(1e3),
        )
        read.clear()  # trl looks at the first
        engine.train(resume_from_checkpoint=resume)
        return read

    return train


@pytest.mark.parametrize("count", [200, 100])
def test_resume_reads_the_rows_that_are_left_and_no_other(train, tmp_path, count):
    """In the first pass over the rows, and in the second."""
    whole = train(count)
    resumed = train(count, resume=str(tmp_path / "checkpoint-30"))
    assert resumed == whole[30 * BATCH :]
    assert 10 * BATCH <= len(resumed) <= 11 * BATCH  # one batch is read ahead
