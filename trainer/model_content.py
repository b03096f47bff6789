"""Which files of a model's directory are read when it is loaded. Stdlib only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from trainer.files import read_json

_WEIGHTS = (".safetensors", ".gguf")
# Formats that are never loaded, pages for people, and what a run leaves beside its model.
_NOT_READ = (
    ".*", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.md", "*.html", "*.jsonl",
    "*.log", "*.png", "*.jpg", "*.pdf", "LICENSE*", "NOTICE*", "result*.json", "progress.json", "*_tracker.json",
    "trainer_state.json", "manifest.json", "added_tokens_info.json",
)  # fmt: skip
_TEMPLATES_DIR = "additional_chat_templates"


def list_model_files(directory: Path, values: Mapping[str, Any], *, with_weights: bool) -> list[Path]:
    """Config, tokenizer, templates, code and, where asked for, the weights, in a fixed order."""
    found = {path for place in _places(directory, values) for path in _files_in(place)}
    found |= {path for path in directory.rglob("*.py") if path.is_file()}
    weights = set(list_weight_files(directory, values))
    others = {path for path in found if path.suffix not in _WEIGHTS}
    return sorted(others | weights if with_weights else others)


def list_weight_files(directory: Path, values: Mapping[str, Any]) -> list[Path]:
    """In safetensors, or the one GGUF file that `model_init_kwargs` names."""
    options = values.get("model_init_kwargs") or {}
    folder = directory / str(options.get("subfolder") or "")
    if gguf := options.get("gguf_file"):
        return [path for path in [folder / str(gguf)] if path.is_file()]
    found = {*folder.glob("*.safetensors"), *(folder / name for name in _named_weights(folder))}
    return sorted(path for path in found if path.is_file())


def is_name_inside(name: str) -> bool:
    """A file's name, or that of one in a subdirectory."""
    return not name.startswith("/") and ".." not in name.split("/")


def _named_weights(folder: Path) -> Iterator[str]:
    """Those that an index or config.json names: they may lie in a subdirectory."""
    named = [(read_json(folder / "config.json") or {}).get("transformers_weights")]
    for index in folder.glob("*.safetensors.index*.json"):
        shards = (read_json(index) or {}).get("weight_map")
        named += shards.values() if isinstance(shards, dict) else []
    yield from {name for name in named if isinstance(name, str) and is_name_inside(name)}


def _places(directory: Path, values: Mapping[str, Any]) -> Iterator[Path]:
    subfolder = (values.get("model_init_kwargs") or {}).get("subfolder")
    for place in (directory, directory / str(subfolder)) if subfolder else (directory,):
        yield from (place, place / _TEMPLATES_DIR)


def _files_in(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from (path for path in place.iterdir() if path.is_file() and not _is_unread(path.name))


def _is_unread(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _NOT_READ)
