"""Whether there are rows enough for a batch, known before the model loads."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from transformers import TrainingArguments

from airflow_provider_sft.contract.errors import DataError


def check_batches(args: TrainingArguments, train: Any, validation: Any) -> None:
    """Transformers drops the batch that is not full, per process, and then fails, or trains nothing and succeeds.

    :raises DataError: `dataloader_drop_last` drops every row
    """
    if not args.dataloader_drop_last:
        return
    for rows, size, key in (
        (train, args.train_batch_size, "per_device_train_batch_size"),
        (validation, args.eval_batch_size, "per_device_eval_batch_size"),
    ):
        if isinstance(rows, Sized) and len(rows) // size // args.world_size == 0:
            kind = "train" if rows is train else "evaluate"
            each = f" for each of {args.world_size} processes" if args.world_size > 1 else ""
            raise DataError(
                f"dataloader_drop_last drops every row: there are {len(rows)} to {kind} on (packed ones count as one), and "
                f"{key} is {size}{each}. Lower it, give more rows, or drop dataloader_drop_last."
            )
