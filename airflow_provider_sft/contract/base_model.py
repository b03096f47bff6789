"""The base model on disk: where it is, what its tensors are called. Headers alone, read when asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.adapter_files import TensorEntry, read_json_object, read_tensor_file
from airflow_provider_sft.contract.adapter_layout import embedding_side
from airflow_provider_sft.contract.errors import ExportError

INDEX_FILE = "model.safetensors.index.json"
# Prefixes of the language model in a checkpoint, in a text-only class and in a multimodal one.
_ROOT = re.compile(r"^(?:(?:model|language_model|transformer|gpt_neox|backbone)\.)+")
# Names on disk → in memory, where transformers renames a folder or a fused parameter when it loads.
_RENAMED_IN_MEMORY = {
    ".block_sparse_moe.": ".mlp.",
    ".mlp.input_linear.weight": ".mlp.experts.gate_up_proj",
    ".mlp.output_linear.weight": ".mlp.experts.down_proj",
    ".mlp.router.layer.": ".mlp.router.",
}
# nn.Linear's weight the other way round (transformers' Conv1D).
_CONV1D_MODEL_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})


class BaseModel:
    """A directory in Hugging Face's layout."""

    def __init__(self, directory: Path, *, grown_to: int | None = None) -> None:
        """:param grown_to: the vocabulary of a copy of it that is yet to be written"""
        self.directory = directory
        self.grown_to = grown_to

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_json_object(self.directory / "config.json")

    @property
    def architecture(self) -> str:
        """The class that vLLM serves; empty where config.json names none."""
        return str((self.config.get("architectures") or [""])[0])

    @property
    def is_multimodal(self) -> bool:
        """Whether the served class holds the language model as one part of several."""
        return bool(self.config.get("text_config")) and not self.architecture.endswith("ForCausalLM")

    @property
    def is_quantised(self) -> bool:
        return bool(self.config.get("quantization_config"))

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part, where the model has others."""
        return self.config.get("text_config") or self.config

    @property
    def vocabulary(self) -> int | None:
        return self.grown_to or self.text_config.get("vocab_size") or self.config.get("vocab_size")

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

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors by name; empty where the weights are not there, or not as safetensors."""
        try:
            return {name: entry.shape for name, entry in self.tensors.items()}
        except ExportError:
            return {}

    @cached_property
    def _by_plain_name(self) -> dict[str, str]:
        return {_plain(name): name for name in self.shapes}

    def embedding_name(self, side: str) -> str | None:
        """The tensor's name of the input or the output embedding."""
        named = ((name, name.removesuffix(".weight")) for name in self.tensors if name.endswith(".weight"))
        return next((name for name, module in named if embedding_side(module) == side), None)

    def find(self, module: str, parameter: str = "weight") -> str | None:
        """The name on disk of a module's parameter: the same, under another root, or as it was before loading."""
        name = f"{module}.{parameter}" if parameter else module
        return name if name in self.shapes else self._by_plain_name.get(_plain(name))

    def served_name(self, module: str) -> str:
        """The module's name as the served class loads it, which is the checkpoint's.

        A multimodal class keeps the language model under a prefix that the text-only class lacks.
        """
        on_disk = self.find(module)
        if on_disk is None:
            return module
        if self.is_multimodal:
            return on_disk.removesuffix(".weight")
        return module.replace(".mlp.", ".block_sparse_moe.") if ".block_sparse_moe." in on_disk else module


def has_root(name: str) -> bool:
    """Whether a name begins as names of a whole model do (`model.`)."""
    return bool(_ROOT.match(name))


def _plain(name: str) -> str:
    """Without its root, and as it is in memory."""
    plain = _ROOT.sub("", name)
    for on_disk, in_memory in _RENAMED_IN_MEMORY.items():
        plain = plain.replace(on_disk, in_memory)
    return plain


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
