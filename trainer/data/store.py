"""Prepared rows on disk: Arrow files that `datasets` reads in place, and what they amount to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.data.encode import SCHEMA
from trainer.data.masking import NOT_TRAINED

TOKEN_COLUMNS = ["input_ids", "labels"]


@dataclass(frozen=True)
class RowSizes:
    """A number a row."""

    lengths: npt.NDArray[np.int64]
    whole_lengths: npt.NDArray[np.int64]
    trained: npt.NDArray[np.int64]


@contextlib.contextmanager
def open_writer(path: Path, schema: Any = SCHEMA) -> Iterator[Any]:
    """An Arrow stream writer: `write_batch`, `write_table`."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        yield writer


def load_rows(paths: Sequence[Path]) -> datasets.Dataset:
    """The rows of all `paths`, mapped, not read; lists come out as numpy arrays."""
    parts = [datasets.Dataset.from_file(str(path)) for path in paths]
    rows = datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    kept = [column for column in rows.column_names if column != "whole_length"]
    return rows.select_columns(kept).with_format("numpy")


def write_rows(rows: datasets.Dataset, path: Path) -> None:
    """`rows` in their order, to a file of their own."""
    with open_writer(path) as writer:
        for table in rows.with_format("arrow").iter(batch_size=2048):
            writer.write_table(table.cast(SCHEMA))


def measure_rows(paths: Sequence[Path]) -> RowSizes:
    """The sizes of all rows. A row's first token does not count as trained: nothing predicts it."""
    parts = [_measure(batch) for path in paths for batch in read_batches(path)]
    return RowSizes(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def read_batches(path: Path) -> Iterator[Any]:
    with pa.memory_map(str(path)) as source:
        yield from pa.ipc.open_stream(source)


def _measure(batch: Any) -> tuple[npt.NDArray[np.int64], ...]:
    labels = batch.column("labels")
    offsets = labels.offsets.to_numpy().astype(np.int64)
    trained = labels.values.to_numpy() != NOT_TRAINED
    lengths = np.diff(offsets)
    counted = np.concatenate(([0], np.cumsum(trained, dtype=np.int64)))
    first = trained[offsets[:-1].clip(max=max(len(trained) - 1, 0))] & (lengths > 0)
    trained_counts = counted[offsets[1:]] - counted[offsets[:-1]] - first
    return lengths, batch.column("whole_length").to_numpy().astype(np.int64), trained_counts
