"""What an adapter does to one tensor of the base model, computed a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from airflow_provider_sft.contract.adapter_files import TensorEntry
from airflow_provider_sft.contract.errors import ExportError
from trainer.export.numbers import Array, encode_array, read_array
from trainer.export.tensors import Chunk, OutTensor, slice_rows

_BLOCK_BYTES = 64 << 20  # of float32


@dataclass(frozen=True)
class Delta:
    """scaling · B·A. A is (rank, in), B is (out, rank); `load` reads them when they are needed.

    :param transposed: the weight is (in, out): an embedding's, or a Conv1D's
    """

    load: Callable[[], tuple[Array, Array]]
    scaling: float
    transposed: bool = False


@dataclass(frozen=True)
class Edit:
    """`base` is the tensor on disk, None for one that the base model does not have."""

    name: str
    base: TensorEntry | None
    whole: TensorEntry | None = None  # takes the place of the base's rows
    appended: tuple[TensorEntry, ...] = ()  # rows of added tokens
    rows: dict[int, TensorEntry] = field(default_factory=dict)  # take the place of single rows
    deltas: tuple[Delta, ...] = ()
    magnitude: TensorEntry | None = None  # DoRA
    expert_axis: bool = False  # the base is (experts, …) and the deltas are one an expert

    @property
    def is_plain(self) -> bool:
        """Whether nothing is computed, so that bytes of the base's type are copied."""
        return not self.deltas and self.magnitude is None

    @property
    def start(self) -> TensorEntry:
        """The rows that the edit begins from."""
        entry = self.whole or self.base
        if entry is None:
            raise ValueError(f"{self.name} has neither a base nor a replacement")
        return entry

    @property
    def num_rows(self) -> int:
        return self.start.shape[0] + sum(entry.shape[0] for entry in self.appended)


def apply_edit(edit: Edit) -> OutTensor:
    """The edited tensor in the base's own type."""
    dtype = (edit.base or edit.start).dtype
    shape = (edit.num_rows, *edit.start.shape[1:])
    return OutTensor(edit.name, dtype, shape, lambda: _blocks(edit, dtype))


def _blocks(edit: Edit, dtype: str) -> Iterator[Chunk]:
    if edit.is_plain and edit.start.dtype == dtype and not edit.rows:
        yield edit.start
        for entry in edit.appended:
            yield entry if entry.dtype == dtype else encode_array(read_array(entry), dtype)
        return
    if edit.expert_axis:
        for expert, delta in enumerate(edit.deltas):
            one = slice_rows(edit.start, expert, expert + 1)
            flat = one._replace(shape=one.shape[1:])
            yield from _blocks(
                replace(edit, base=flat, whole=None, deltas=(delta,), expert_axis=False), dtype
            )
        return
    matrices = [delta.load() for delta in edit.deltas]
    norms = _column_norms(edit, matrices) if edit.magnitude and _is_transposed(edit) else None
    for start, stop in _block_spans(edit):
        yield encode_array(_finish(edit, _edited(edit, matrices, start, stop), norms, start, stop), dtype)


def _block_spans(edit: Edit) -> Iterator[tuple[int, int]]:
    width = 4
    for dimension in edit.start.shape[1:]:
        width *= dimension
    step = max(_BLOCK_BYTES // width, 1)
    for start in range(0, edit.num_rows, step):
        yield start, min(start + step, edit.num_rows)


def _edited(edit: Edit, matrices: list[tuple[Array, Array]], start: int, stop: int) -> Array:
    """Rows of base + scaling · B·A in float32."""
    block = _unedited(edit, start, stop)
    for delta, (a, b) in zip(edit.deltas, matrices, strict=True):
        added = a[:, start:stop].T @ b.T if delta.transposed else b[start:stop] @ a
        if added.shape not in (block.shape, (*block.shape, 1)):  # a bias is a column
            raise ExportError(
                f"{edit.name} has the shape {edit.start.shape}, and the adapter's LoRA the shape "
                f"({b.shape[0]}, {a.shape[1]}). Give the model that it was tuned from with --base."
            )
        block += added.reshape(block.shape) * block.dtype.type(delta.scaling)
    return block


def _unedited(edit: Edit, start: int, stop: int) -> Array:
    import numpy as np

    known = edit.start.shape[0]
    parts = [read_array(edit.start, start, min(stop, known))] if start < known else []
    first = known
    for entry in edit.appended:
        low, high = max(start, first), min(stop, first + entry.shape[0])
        if low < high:
            parts.append(read_array(entry, low - first, high - first))
        first += entry.shape[0]
    block = np.concatenate(parts) if len(parts) > 1 else parts[0].copy()
    for token, row in edit.rows.items():
        if start <= token < stop:
            block[token - start] = read_array(row)[0]
    return block


def _is_transposed(edit: Edit) -> bool:
    return any(delta.transposed for delta in edit.deltas)


def _finish(edit: Edit, block: Array, norms: Array | None, start: int, stop: int) -> Array:
    """DoRA: each output's weights get the length that was trained. https://arxiv.org/abs/2402.09353"""
    import numpy as np

    if edit.magnitude is None:
        return block
    magnitude = read_array(edit.magnitude).reshape(-1)
    if norms is not None:
        return block * (magnitude / norms)
    return block * (magnitude[start:stop] / np.linalg.norm(block, axis=1))[:, None]


def _column_norms(edit: Edit, matrices: list[tuple[Array, Array]]) -> Array:
    import numpy as np

    squares = np.zeros(edit.start.shape[1], "<f8")
    for start, stop in _block_spans(edit):
        squares += (_edited(edit, matrices, start, stop).astype("<f8") ** 2).sum(axis=0)
    return np.sqrt(squares).astype("<f4")
