"""Tensors as float32 arrays, a block of rows at a time, and back; bfloat16 included, which numpy lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_sft.contract.adapter_files import TensorEntry
from airflow_provider_sft.contract.errors import ExportError
from trainer.export.tensors import slice_rows

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float32]]
else:
    Array = Any  # numpy is imported where numbers are computed, not where tensors are moved

_PLAIN = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_BF16_QUIET_NAN = 0x7FC0


def read_array(entry: TensorEntry, start: int = 0, stop: int | None = None) -> Array:
    """Rows of a tensor in float32, exact but for float64.

    :raises ExportError: the tensor holds no floating point numbers (a quantised weight)
    """
    import numpy as np

    stop = entry.shape[0] if stop is None else stop
    rows = slice_rows(entry, start, stop)
    with rows.path.open("rb") as file:
        file.seek(rows.begin)
        raw = file.read(rows.end - rows.begin)
    if entry.dtype == "BF16":
        wide = np.frombuffer(raw, "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(rows.shape)
    if entry.dtype not in _PLAIN:
        raise ExportError(
            f"{entry.path} holds weights of type {entry.dtype}, which cannot be computed with. "
            "Use the base model in 16 or 32 bits."
        )
    return np.frombuffer(raw, _PLAIN[entry.dtype]).astype("<f4").reshape(rows.shape)


def encode_array(array: Array, dtype: str) -> bytes:
    """Round to nearest, ties to even, as torch does."""
    import numpy as np

    contiguous = np.ascontiguousarray(array, "<f4")
    if dtype != "BF16":
        return contiguous.astype(_PLAIN[dtype]).tobytes()
    bits = contiguous.view("<u4")
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    rounded[np.isnan(contiguous)] = _BF16_QUIET_NAN
    return rounded.tobytes()


def is_exact(array: Array, dtype: str) -> bool:
    """Whether `dtype` holds every number of `array` unchanged."""
    import numpy as np

    if dtype == "BF16":
        return not bool((np.ascontiguousarray(array, "<f4").view("<u4") & 0xFFFF).any())
    return bool((array.astype(_PLAIN[dtype]).astype("<f4") == array).all())
