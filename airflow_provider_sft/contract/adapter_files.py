"""What an adapter's files say about themselves, read without loading a tensor.

The safetensors format: 8 bytes of header length (little-endian), a JSON header of dtype, shape and byte range
for each tensor, then the bytes. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from airflow_provider_sft.contract.errors import ExportError

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"

_MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library
_LENGTH_BYTES = 8


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
        raise ExportError(f"{path} does not exist. Save the adapter as safetensors.") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ExportError(f"{path} is no safetensors file ({error!r}). Save it again.") from error


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
