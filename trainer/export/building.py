"""Tensors of the exported adapter that are not copies: filled up with zeros, or computed."""

from __future__ import annotations

from collections.abc import Callable

from airflow_provider_sft.contract.adapter_files import TensorEntry
from trainer.export.numbers import Array, encode_array, is_exact
from trainer.export.tensors import OutTensor, keep_tensor


def add_zero_rows(name: str, entry: TensorEntry, count: int) -> OutTensor:
    if not count:
        return keep_tensor(name, entry)
    rows, *rest = entry.shape
    zeros = bytes((entry.end - entry.begin) // rows * count)
    return OutTensor(name, entry.dtype, (rows + count, *rest), lambda: [entry, zeros])


def widen_columns(array: Array, count: int) -> Array:
    import numpy as np

    return np.pad(array, ((0, 0), (0, count)))


def computed(name: str, array: Array, dtype: str) -> OutTensor:
    """In `dtype` where it holds every number, else in float32: nothing is rounded twice."""
    kept = dtype if is_exact(array, dtype) else "F32"
    content = encode_array(array, kept)
    return OutTensor(name, kept, array.shape, lambda: [content])


def rearranged(name: str, dtype: str, shape: tuple[int, ...], make: Callable[[], Array]) -> OutTensor:
    """The same numbers in another place: made when they are written."""
    return OutTensor(name, dtype, shape, lambda: [encode_array(make(), dtype)])
