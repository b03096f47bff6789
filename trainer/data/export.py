"""`do_dataprocessing_only`: the prepared rows as Parquet shards, which a later run takes as its data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.settings import Settings
from trainer.data.job import PreparationJob
from trainer.files import sync_tree

# fms-hf-tuning's names, so that what reads its shards reads ours.
_FOLDERS = {
    "train": ("train_dataset", "num_train_dataset_shards"),
    "validation": ("validation_dataset", "num_eval_dataset_shards"),
}


def export_rows(
    job: PreparationJob, prepared_dir: Path, settings: Settings, say: Callable[[str], None]
) -> None:
    """Write `output_dir/train_dataset/ds_00000.parquet`, …, and the same for validation. Replaces earlier shards."""
    for role, (folder, count_key) in _FOLDERS.items():
        rows = job.load_unpacked(prepared_dir, role)
        if rows is None:
            continue
        target = Path(settings.values["output_dir"], folder)
        shards = int(settings.values.get(count_key) or 1)
        _write_shards(rows, target, shards)
        say(f"{role}: {len(rows):,} rows written to {target} in {shards} shards, for a later run to read.")


def _write_shards(rows: Any, target: Path, shards: int) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for number in range(shards):
        part = rows.shard(num_shards=shards, index=number, contiguous=True)
        part.to_parquet(str(temporary / f"ds_{number:05d}.parquet"))
    sync_tree(temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
