"""A tensor of a file to be written, and rows of one that is there: byte ranges, until somebody asks for the bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from airflow_provider_sft.contract.adapter_files import TensorEntry

DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip

Chunk = bytes | TensorEntry  # computed bytes, or a byte range of a file


@dataclass(frozen=True)
class OutTensor:
    """One tensor of a file to be written. `chunks` makes its bytes, in order, when they are needed."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Chunk]]
    kept: TensorEntry | None = None  # the tensor that this is a copy of

    @property
    def size_bytes(self) -> int:
        size = DTYPE_BYTES[self.dtype]
        for dimension in self.shape:
            size *= dimension
        return size


def keep_tensor(name: str, entry: TensorEntry) -> OutTensor:
    """The tensor as it is, perhaps under another name."""
    return OutTensor(name, entry.dtype, entry.shape, lambda: [entry], kept=entry)


def slice_rows(entry: TensorEntry, start: int, stop: int) -> TensorEntry:
    """Rows `start` to `stop` of a tensor, as a byte range."""
    row_bytes = (entry.end - entry.begin) // max(entry.shape[0], 1)
    begin = entry.begin + start * row_bytes
    shape = (stop - start, *entry.shape[1:])
    return TensorEntry(entry.path, entry.dtype, shape, begin, begin + (stop - start) * row_bytes)
