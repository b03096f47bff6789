"""The base model on disk: where it is, what its tensors are called. Headers alone, read when asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.adapter_files import TensorEntry, read_json_object, read_tensor_file
from airflow_provider_sft.contract.adapter_layout import embedding_side
from airflow_provider_sft.contract.errors import ExportError

INDEX_FILE = "model.safetensors.index.json"
# Fused in memory, an expert each on disk: the folder that transformers renames when it loads.
_RENAMED_ON_DISK = {".mlp.": ".block_sparse_moe."}
# nn.Linear's weight the other way round (transformers' Conv1D).
_CONV1D_MODEL_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})


class BaseModel:
    """A directory in Hugging Face's layout."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_json_object(self.directory / "config.json")

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part, where the model has others."""
        return self.config.get("text_config") or self.config

    @property
    def vocabulary(self) -> int | None:
        return self.text_config.get("vocab_size") or self.config.get("vocab_size")

    @property
    def is_conv1d(self) -> bool:
        return self.config.get("model_type") in _CONV1D_MODEL_TYPES

    @property
    def is_tied(self) -> bool:
        """Whether the output embedding is the input embedding."""
        tied = self.text_config.get("tie_word_embeddings", self.config.get("tie_word_embeddings"))
        return bool(tied) if tied is not None else self.embedding_name("output") is None

    @cached_property
    def weight_files(self) -> list[Path]:
        """:raises ExportError: no safetensors there"""
        single = self.directory / "model.safetensors"
        if single.exists():
            return [single]
        if (self.directory / INDEX_FILE).exists():
            names = set(read_json_object(self.directory / INDEX_FILE)["weight_map"].values())
            return [self.directory / name for name in sorted(names)]
        raise ExportError(
            f"The base model {self.directory} holds no model.safetensors. Name one that is saved as safetensors."
        )

    @cached_property
    def tensors(self) -> dict[str, TensorEntry]:
        return {
            name: entry
            for path in self.weight_files
            for name, entry in read_tensor_file(path).tensors.items()
        }

    def embedding_name(self, side: str) -> str | None:
        """The tensor's name of the input or the output embedding."""
        named = ((name, name.removesuffix(".weight")) for name in self.tensors if name.endswith(".weight"))
        return next((name for name, module in named if embedding_side(module) == side), None)

    def find(self, module: str, parameter: str = "weight") -> str | None:
        """The name on disk of a module's parameter: the same, under another root, or in a renamed folder."""
        for spelled in (module, *(module.replace(old, new) for old, new in _RENAMED_ON_DISK.items())):
            name = f"{spelled}.{parameter}" if parameter else spelled
            if name in self.tensors:
                return name
            if under_other_root := self._find_suffix(name):
                return under_other_root
        return None

    def _find_suffix(self, name: str) -> str | None:
        """The one tensor whose name ends as this one does after its first part or two."""
        parts = name.split(".")
        for skipped in range(min(3, len(parts) - 1)):
            suffix = ".".join(parts[skipped:])
            matches = [found for found in self.tensors if found == suffix or found.endswith(f".{suffix}")]
            if len(matches) == 1:
                return matches[0]
        return None


def find_base(config: Mapping[str, Any], override: Path | None = None) -> BaseModel | None:
    """The adapter's base model where it can be found: named, as a directory, or in the Hub's cache.

    :param config: adapter_config.json
    :raises ExportError: `override` is no model
    """
    if override is not None:
        if not (override / "config.json").is_file():
            raise ExportError(f"The base model {override} holds no config.json. Name the model's directory.")
        return BaseModel(override)
    name = str(config.get("base_model_name_or_path") or "")
    candidates = [Path(name), _in_hub_cache(name, str(config.get("revision") or "main"))] if name else []
    return next((BaseModel(path) for path in candidates if path and (path / "config.json").is_file()), None)


def _in_hub_cache(name: str, revision: str) -> Path | None:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    repository = cache / f"models--{name.replace('/', '--')}"
    reference = repository / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    snapshot = repository / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None
