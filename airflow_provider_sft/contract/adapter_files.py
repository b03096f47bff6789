"""What an adapter's files say about themselves, read without loading a tensor.

The safetensors format: 8 bytes of header length (little-endian), a JSON header of dtype, shape and byte range
for each tensor, then the bytes. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from airflow_provider_sft.contract.errors import ExportError

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"

_MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library
_LENGTH_BYTES = 8
_SCAN_BYTES = 16 << 20


class TensorEntry(NamedTuple):
    """One tensor; `begin` and `end` are byte offsets in its file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile(NamedTuple):
    """One safetensors file, by its header."""

    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]


def read_tensor_file(path: Path) -> TensorFile:
    """:raises ExportError: missing, cut short, or no safetensors file"""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            size_bytes = os.fstat(file.fileno()).st_size
            if length > min(_MAX_HEADER_BYTES, size_bytes - _LENGTH_BYTES):
                raise ExportError(f"{path} is no safetensors file, or is cut short. Save it again.")
            return _parse_header(path, json.loads(file.read(length)), _LENGTH_BYTES + length, size_bytes)
    except FileNotFoundError as error:
        raise ExportError(_describe_missing(path), advice="") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ExportError(f"{path} is no safetensors file ({error!r}). Save it again.") from error


def _describe_missing(path: Path) -> str:
    pickled = path.with_suffix(".bin")
    if not pickled.exists():
        return f"{path} does not exist. Save the adapter as safetensors."
    return (
        f"{pickled} is a pickle, which can run code when it is read, so it is neither judged nor exported. "
        "Load the adapter with PEFT and save it again, which writes safetensors."
    )


def _parse_header(path: Path, header: dict[str, Any], data_start: int, size_bytes: int) -> TensorFile:
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= size_bytes - data_start:
            raise ExportError(f"{path} is cut short: {name!r} ends beyond it. Save it again.")
        tensors[name] = TensorEntry(
            path, entry["dtype"], tuple(entry["shape"]), data_start + begin, data_start + end
        )
    return TensorFile(metadata, tensors)


def read_json_object(path: Path) -> dict[str, Any]:
    """:raises ExportError: missing, or no JSON object"""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExportError(f"{path} does not exist. Name a directory that PEFT saved.") from error
    except ValueError as error:
        raise ExportError(f"{path} is not JSON ({error}). Save the adapter again.") from error
    if not isinstance(value, dict):
        raise ExportError(f"{path} holds no JSON object. Save the adapter again.")
    return value


def find_nonfinite(tensors: Mapping[str, TensorEntry]) -> str | None:
    """The first tensor that holds a NaN or an infinity."""
    return next((name for name, entry in tensors.items() if _is_nonfinite(entry)), None)


def is_nonzero(entry: TensorEntry) -> bool:
    """Whether any of its bytes is; False for a tensor that is not written yet."""
    if not entry.path.is_file():
        return False
    with entry.path.open("rb") as file:
        file.seek(entry.begin)
        left = entry.end - entry.begin
        while left > 0 and (block := file.read(min(left, _SCAN_BYTES))):
            left -= len(block)
            if block.strip(b"\0"):
                return True
    return False


# Bytes of a number's end that are all ones in its exponent, for each type: the last, and the bits of the one before.
_EXPONENTS = {
    "F32": (4, b"\x7f\xff", 0x80),
    "BF16": (2, b"\x7f\xff", 0x80),
    "F16": (2, bytes((*range(0x7C, 0x80), *range(0xFC, 0x100))), 0),
}


def _is_nonfinite(entry: TensorEntry) -> bool:
    if entry.dtype not in _EXPONENTS:
        return False
    size, last, before = _EXPONENTS[entry.dtype]
    mask_last = bytes(int(value in last) for value in range(256))
    mask_before = bytes(int(value & before == before) for value in range(256))
    with entry.path.open("rb") as file:
        file.seek(entry.begin)
        left = entry.end - entry.begin
        while left > 0 and (block := file.read(min(left, _SCAN_BYTES))):
            left -= len(block)
            high = block[size - 1 :: size].translate(mask_last)
            if 1 in high:
                low = block[size - 2 :: size].translate(mask_before)
                if int.from_bytes(high, "big") & int.from_bytes(low, "big"):
                    return True
    return False
