"""Damage in a model's or tokenizer's files, found by their headers and syntax before the ranks start. Stdlib only."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.adapter_files import TensorEntry, read_tensor_file
from airflow_provider_sft.contract.errors import AccessDeniedError, ExportError, NotFoundError
from trainer.model_content import is_name_inside

_INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
# JSON objects that transformers reads; the files of a tokenizer, then those of a model.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
_MODEL_FILES = ("config.json", "generation_config.json", _INDEX)
_COPY_AGAIN = "Copy the model again."
_BITS = {"BOOL": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
_BITS |= {"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "F8_E4M3": 8, "F8_E5M2": 8}


def check_tokenizer_files(directory: Path) -> None:
    """:raises NotFoundError: one of the tokenizer's files is damaged
    :raises AccessDeniedError: one cannot be read
    """
    for name in (*_TOKENIZER_FILES, "config.json"):
        _check_object(directory / name)
    for name in ("tokenizer.model", "merges.txt", "chat_template.jinja"):
        _check_readable(directory / name)


def check_model_files(directory: Path, *, variant: str | None = None) -> None:
    """
    :param variant: of the weights' file names, such as fp16 in model.fp16.safetensors
    :raises NotFoundError: config.json or the weights are not there or damaged, or an adapter lies beside them
    :raises AccessDeniedError: one of these files cannot be read
    """
    for name in _MODEL_FILES:
        _check_object(directory / name)
    if (directory / _ADAPTER).exists():
        raise NotFoundError(
            f"{directory / _ADAPTER} makes an adapter of this model, and transformers would load the adapter's base instead. "
            "Remove that file, or merge the adapter into its base and name the merged model."
        )
    for path in _weight_files(directory, f".{variant}" if variant else ""):
        _check_tensors(path)


def _weight_files(directory: Path, variant: str) -> Iterator[Path]:
    """The files that transformers would load, in its order of preference."""
    single, index = f"model{variant}.safetensors", f"model.safetensors.index{variant}.json"
    named = _read_object(directory / "config.json").get("transformers_weights")
    if isinstance(named, str):
        _check_inside(directory / "config.json", named)
    names = [named] if isinstance(named, str) else [single, index]
    path = next((directory / name for name in names if (directory / name).exists()), None)
    if path is None:
        raise NotFoundError(
            f"model_name_or_path {str(directory)!r} holds no weights in {' or '.join(names)}; pickled weights are not "
            "opened. Copy the model again, or convert it with transformers' save_pretrained."
        )
    if path.suffix == ".json":
        yield from _shards(path)
    else:
        yield path


def _shards(index: Path) -> Iterator[Path]:
    shards = _read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(v, str) for v in shards.values()):
        raise NotFoundError(f"{index} has no 'weight_map' of tensors to files. {_COPY_AGAIN}")
    found = {}
    for name in sorted(set(shards.values())):
        path = index.parent / name
        _check_inside(index, name)
        if not path.exists():
            raise NotFoundError(f"{path} does not exist, and {index.name} names it. {_COPY_AGAIN}")
        found[name] = path
    yield from found.values()


def _check_inside(path: Path, name: str) -> None:
    if not is_name_inside(name):
        raise NotFoundError(
            f"{path} names {name!r}, which does not lie in the model's directory. {_COPY_AGAIN}"
        )


def _check_tensors(path: Path) -> None:
    """:raises NotFoundError: the header is not that of a whole safetensors file"""
    _check_readable(path)
    if flaw := find_tensor_flaw(path):
        raise NotFoundError(f"{path} is damaged: {flaw}. {_COPY_AGAIN}")


def find_tensor_flaw(path: Path) -> str:
    """Why `path` is not a whole safetensors file, by its header and size; empty where it is."""
    try:
        tensors = read_tensor_file(path).tensors
        return _find_flaw(list(tensors.items()), path.stat().st_size)
    except (ExportError, AttributeError, TypeError, ValueError, RecursionError) as error:
        return str(error).removeprefix(f"{path} ").removesuffix(" Save it again.").rstrip(".")


def _find_flaw(tensors: list[tuple[str, TensorEntry]], size_bytes: int) -> str:
    """Tensors fill a file without gaps, each as long as its type and shape say; empty where they do."""
    tensors.sort(key=lambda item: (item[1].begin, item[1].end))
    end = tensors[0][1].begin if tensors else 0
    for name, tensor in tensors:
        bits = _BITS.get(tensor.dtype)
        length = tensor.end - tensor.begin
        if tensor.begin != end or (bits and math.prod(tensor.shape) * bits // 8 != length):
            return f"{name!r} is not where its header has it"
        end = tensor.end
    return "" if end == size_bytes else f"its header describes {end} of its {size_bytes} bytes"


def _check_object(path: Path) -> None:
    if path.exists():
        _check_readable(path)
        _read_object(path)


def _read_object(path: Path) -> dict[str, Any]:
    """:raises NotFoundError: not a JSON object"""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        found = "is empty" if not path.stat().st_size else f"is not JSON ({' '.join(str(error).split())})"
        raise NotFoundError(f"{path} {found}. {_COPY_AGAIN}") from error
    if not isinstance(value, dict):
        raise NotFoundError(f"{path} holds a {type(value).__name__} and not a JSON object. {_COPY_AGAIN}")
    return value


def _check_readable(path: Path) -> None:
    """:raises NotFoundError: there is something else than a file
    :raises AccessDeniedError: no permission
    """
    if path.exists() and not path.is_file():
        raise NotFoundError(f"{path} is a directory and should be a file. {_COPY_AGAIN}")
    if path.exists() and not os.access(path, os.R_OK):
        raise AccessDeniedError(f"{path} cannot be read by user {os.getuid()}. Give it read permission.")
