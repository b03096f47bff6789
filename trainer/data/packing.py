"""Rows packed behind each other up to a length, each still a document of its own.

Best fit decreasing within a window of rows (https://huggingface.co/papers/2404.10830), as trl's `bfd` does, with
windows wide enough that next to nothing stays empty. The same rows in the same order give the same packs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from trainer.data.store import open_writer

_WINDOW_ROWS = 16_384
_BATCH_PACKS = 256
PACKED_SCHEMA = pa.schema(
    {"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32()), "seq_lengths": pa.list_(pa.int32())}
)


def write_packs(rows: datasets.Dataset, path: Path, *, length: int, strategy: str) -> int:
    """`rows` packed to at most `length` tokens; the number of packs.

    :param strategy: bfd: a row longer than `length` is cut; bfd_split: it becomes several documents; wrapped: rows stay
        in their order and are split where a pack is full
    """
    packs = 0
    with open_writer(path, PACKED_SCHEMA) as writer:
        for table in rows.with_format("arrow").iter(batch_size=_WINDOW_ROWS):
            documents = _Documents.of(table)
            if strategy == "wrapped":
                bins = documents.wrap(length)
            else:
                documents.fit(length, split=strategy == "bfd_split")
                bins = pack_best_fit(documents.lengths.tolist(), length)
            for start in range(0, len(bins), _BATCH_PACKS):
                writer.write_batch(documents.batch(bins[start : start + _BATCH_PACKS]))
            packs += len(bins)
    return packs


def pack_best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in bins of at most `capacity`: the longest first, each to the fullest bin that takes it."""
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = defaultdict(list)
    rooms = 0  # bit r is set when a bin has exactly r left
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(index)
        if left := room - length:
            by_room[left].append(chosen)
            rooms |= 1 << left
    return bins


class _Documents:
    """Pieces of rows: where each starts in the flat tokens, and how long it is."""

    def __init__(self, ids: Any, labels: Any, starts: Any, lengths: Any) -> None:
        self._ids, self._labels = ids, labels
        self.starts, self.lengths = starts, lengths

    @classmethod
    def of(cls, table: Any) -> _Documents:
        ids, labels = (table.column(name).combine_chunks() for name in ("input_ids", "labels"))
        lengths = ids.value_lengths().to_numpy().astype(np.int64)
        return cls(
            ids.flatten().to_numpy(), labels.flatten().to_numpy(), np.cumsum(lengths) - lengths, lengths
        )

    def fit(self, length: int, *, split: bool) -> None:
        """Cut each document to `length`, or into pieces of it."""
        if not split:
            self.lengths = np.minimum(self.lengths, length)
            return
        pieces = [
            (start + at, min(length, size - at))
            for start, size in zip(self.starts.tolist(), self.lengths.tolist(), strict=True)
            for at in range(0, size, length)
        ]
        self.starts, self.lengths = np.array(pieces, dtype=np.int64).reshape(-1, 2).T

    def wrap(self, length: int) -> list[list[int]]:
        """Split documents where a pack is full; the packs, in order."""
        pieces: list[tuple[int, int]] = []
        bins: list[list[int]] = []
        room = 0
        for start, size in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
            at = 0
            while at < size:
                if not room:
                    bins.append([])
                    room = length
                taken = min(room, size - at)
                bins[-1].append(len(pieces))
                pieces.append((start + at, taken))
                at, room = at + taken, room - taken
        self.starts, self.lengths = np.array(pieces, dtype=np.int64).reshape(-1, 2).T
        return bins

    def batch(self, bins: list[list[int]]) -> Any:
        """As `PACKED_SCHEMA` has it."""
        order = np.array([index for members in bins for index in members], dtype=np.int64)
        tokens = np.concatenate(list(self._token_indices(order)))
        sizes = np.add.reduceat(self.lengths[order], np.cumsum([0, *map(len, bins[:-1])]))
        offsets = pa.array(np.concatenate(([0], np.cumsum(sizes))), type=pa.int32())
        counts = pa.array(np.cumsum([0, *map(len, bins)]), type=pa.int32())
        return pa.RecordBatch.from_arrays(
            [
                pa.ListArray.from_arrays(offsets, pa.array(self._ids[tokens])),
                pa.ListArray.from_arrays(offsets, pa.array(self._labels[tokens])),
                pa.ListArray.from_arrays(counts, pa.array(self.lengths[order].astype(np.int32))),
            ],
            schema=PACKED_SCHEMA,
        )

    def _token_indices(self, order: Any) -> Iterator[Any]:
        for start, size in zip(self.starts[order].tolist(), self.lengths[order].tolist(), strict=True):
            yield np.arange(start, start + size)
