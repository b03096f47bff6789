"""How large a model is, told from as little as there is: its files' headers, its config, what a user says, its name.

Nothing is loaded: of a safetensors file the header alone is read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.adapter_files import read_tensor_file
from airflow_provider_sft.contract.adapter_layout import embedding_side
from airflow_provider_sft.contract.errors import SFTError

_SIZE_IN_NAME = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bmt])(?![a-z0-9])")
_UNITS = {"m": 1e6, "b": 1e9, "t": 1e12}
# Transformers are built about 128 times as wide as they are deep, with 12 matrices of width² a layer.
_WIDTH_TO_DEPTH = 128
_SQUARES_PER_LAYER = 12
# Of 8x7B, 46.7 B are there: attention and embeddings are shared by the experts.
_EXPERT_SHARE = 0.8
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "chat_template*")
_MATRIX_DIMENSIONS = 2

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ModelSize:
    """
    :param parameters: how many
    :param source: where that number comes from
    :param matrices: module → shape [out, in] of its weight; a sketch when `is_sketch`
    :param tokenizer_bytes: of the tokenizer's files, which every checkpoint holds too; 0 when unknown
    """

    parameters: int
    source: str
    matrices: Mapping[str, Shape] = field(default_factory=dict)
    hidden_size: int = 0
    num_layers: int = 0
    intermediate_size: int = 0
    vocab_size: int = 0
    is_sketch: bool = False
    tokenizer_bytes: int = 0


def find_model_size(name_or_path: str, model_parameters: float | None = None) -> ModelSize | None:
    """The best answer there is, None when there is none.

    :param model_parameters: what a user says; headers and config win over it
    """
    directory = Path(name_or_path)
    config = _read_config(directory / "config.json")
    if found := _from_headers(directory, config):
        return found
    if found := _from_config(directory, config):
        return found
    if model_parameters:
        return _sketch(model_parameters, f"model_parameters ({_count(model_parameters)})")
    if parameters := read_size_in_name(name_or_path):
        return _sketch(parameters, f"the name {name_or_path!r} ({_count(parameters)})")
    return None


def read_size_in_name(name: str) -> float | None:
    """Parameters, from `/llama/13B`, `bloom-560m`, `Mixtral-8x7B`; the largest where there are several (`30B-A3B`)."""
    sizes = [
        float(number) * _UNITS[unit] * (int(experts) * _EXPERT_SHARE if experts else 1)
        for experts, number, unit in _SIZE_IN_NAME.findall(name.lower())
    ]
    return max(sizes, default=None)


def _from_headers(directory: Path, config: dict[str, Any]) -> ModelSize | None:
    shapes: dict[str, Shape] = {}
    try:
        for file in sorted(directory.glob("*.safetensors")):
            shapes |= {name: tensor.shape for name, tensor in read_tensor_file(file).tensors.items()}
    except (SFTError, OSError):
        return None
    if not shapes:
        return None
    matrices = {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == _MATRIX_DIMENSIONS
    }
    parameters = sum(math.prod(shape) for shape in shapes.values())
    return _describe(directory, config, parameters, f"the safetensors headers in {directory}", matrices)


def _from_config(directory: Path, config: dict[str, Any]) -> ModelSize | None:
    matrices = _matrices_of(_dimensions(config)) if config else {}
    if not matrices:
        return None
    tied = config.get("tie_word_embeddings", False)
    parameters = sum(
        math.prod(s) for m, s in matrices.items() if not (tied and embedding_side(m) == "output")
    )
    return _describe(
        directory, config, parameters, f"{directory / 'config.json'}, without its weights", matrices
    )


def _describe(
    directory: Path, config: dict[str, Any], parameters: int, source: str, matrices: dict[str, Shape]
) -> ModelSize:
    dimensions = _dimensions(config)
    files = {file for pattern in _TOKENIZER_FILES for file in directory.glob(pattern)}
    return ModelSize(
        parameters=parameters,
        source=source,
        matrices=matrices,
        hidden_size=dimensions["hidden"],
        num_layers=dimensions["layers"],
        intermediate_size=dimensions["intermediate"],
        vocab_size=dimensions["vocabulary"],
        tokenizer_bytes=sum(file.stat().st_size for file in files),
    )


def _sketch(parameters: float, source: str) -> ModelSize:
    """A Llama of about that size, for what depends on more than the number."""
    width = round((parameters * _WIDTH_TO_DEPTH / _SQUARES_PER_LAYER) ** (1 / 3))
    dimensions = {
        "hidden": width,
        "layers": max(width // _WIDTH_TO_DEPTH, 1),
        "intermediate": 8 * width // 3,
        "vocabulary": 0,
        "query": width,
        "key": width,
        "gates": 3,
        "experts": 1,
    }
    return ModelSize(
        parameters=int(parameters),
        source=source,
        matrices=_matrices_of(dimensions),
        hidden_size=width,
        num_layers=dimensions["layers"],
        intermediate_size=dimensions["intermediate"],
        is_sketch=True,
    )


def _dimensions(config: dict[str, Any]) -> dict[str, int]:
    """The numbers that make a transformer, under whatever names the architecture gives them."""
    inner = config.get("text_config")  # of a model that sees or hears
    config = inner if isinstance(inner, dict) else config

    def number(*names: str, default: int = 0) -> int:
        value = next((config[name] for name in names if isinstance(config.get(name), int)), default)
        return int(value)

    hidden = number("hidden_size", "n_embd", "d_model")
    heads = number("num_attention_heads", "n_head", default=1) or 1
    head = number("head_dim", default=hidden // heads)
    gated = "silu" in str(config.get("hidden_act", "")) or "swi" in str(config.get("hidden_act", ""))
    experts = number("num_local_experts", "num_experts", "n_routed_experts", default=1)
    intermediate = number("intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    return {
        "hidden": hidden,
        "layers": number("num_hidden_layers", "n_layer", "num_layers"),
        "intermediate": number("moe_intermediate_size", default=intermediate)
        if experts > 1
        else intermediate,
        "vocabulary": number("vocab_size"),
        "query": heads * head,
        "key": number("num_key_value_heads", default=heads) * head,
        "gates": 3 if gated else 2,
        "experts": experts,
    }


def _matrices_of(dimensions: dict[str, int]) -> dict[str, Shape]:
    hidden, intermediate = dimensions["hidden"], dimensions["intermediate"]
    if not hidden or not dimensions["layers"]:
        return {}
    layer: dict[str, Shape] = {
        "self_attn.q_proj": (dimensions["query"], hidden),
        "self_attn.k_proj": (dimensions["key"], hidden),
        "self_attn.v_proj": (dimensions["key"], hidden),
        "self_attn.o_proj": (hidden, dimensions["query"]),
    }
    for expert in range(dimensions["experts"]):
        prefix = f"mlp.experts.{expert}" if dimensions["experts"] > 1 else "mlp"
        layer[f"{prefix}.up_proj"] = (intermediate, hidden)
        layer[f"{prefix}.down_proj"] = (hidden, intermediate)
        if dimensions["gates"] > 2:  # noqa: PLR2004  # up, down and gate
            layer[f"{prefix}.gate_proj"] = (intermediate, hidden)
    matrices = {
        f"model.layers.{index}.{name}": shape
        for index in range(dimensions["layers"])
        for name, shape in layer.items()
    }
    if dimensions["vocabulary"]:
        ends = dict.fromkeys(("model.embed_tokens", "lm_head"), (dimensions["vocabulary"], hidden))
        matrices |= ends
    return matrices


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _count(parameters: float) -> str:
    """`13 B`, `560 M`"""
    unit = "B" if parameters >= _UNITS["b"] else "M"
    return f"{parameters / _UNITS[unit.lower()]:.3g} {unit}"
