"""What PEFT's names say: which module a tensor belongs to, what it is to it, and how the module is scaled."""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

_PEFT_PREFIX = "base_model.model."
_INPUT_EMBEDDINGS = frozenset({"embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings"})
_OUTPUT_EMBEDDINGS = frozenset({"lm_head", "embed_out"})


class Role(enum.Enum):
    """What a tensor of an adapter is to its module."""

    LORA_A = "lora_A"
    LORA_B = "lora_B"
    LORA_BIAS = "lora_bias"
    EMBEDDING_A = "lora_embedding_A"
    EMBEDDING_B = "lora_embedding_B"
    MAGNITUDE = "lora_magnitude_vector"
    ROWS = "trainable_tokens_delta"  # absolute rows, in the order of trainable_token_indices
    FROZEN = "base_layer"  # the base weight beside a LoRA or under trained rows, as PEFT saves it
    WHOLE = "weight"  # the whole weight: trained (modules_to_save) or resized
    BIAS = "bias"
    OTHER = "other"


_SUFFIXES = (
    (re.compile(r"\.lora_A(\.\w+)?\.weight$"), Role.LORA_A),
    (re.compile(r"\.lora_B(\.\w+)?\.weight$"), Role.LORA_B),
    (re.compile(r"\.lora_B(\.\w+)?\.bias$"), Role.LORA_BIAS),
    (re.compile(r"\.lora_embedding_A(\.\w+)?$"), Role.EMBEDDING_A),
    (re.compile(r"\.lora_embedding_B(\.\w+)?$"), Role.EMBEDDING_B),
    (re.compile(r"\.lora_magnitude_vector(\.\w+)?(\.weight)?$"), Role.MAGNITUDE),
    (re.compile(r"\.token_adapter\.trainable_tokens_delta(\.\w+)?$"), Role.ROWS),
    (re.compile(r"\.token_adapter\.base_layer\.weight$"), Role.FROZEN),
    (re.compile(r"\.(base_layer|original_module)\.weight$"), Role.FROZEN),
    (re.compile(r"\.original_module\.bias$"), Role.OTHER),
    (re.compile(r"\.modules_to_save(\.\w+)?\.weight$"), Role.WHOLE),
    (re.compile(r"\.(base_layer|modules_to_save)(\.\w+)?\.bias$"), Role.BIAS),
    (re.compile(r"\.weight$"), Role.WHOLE),
    (re.compile(r"\.bias$"), Role.BIAS),
)


@functools.lru_cache(maxsize=1 << 16)
def parse_tensor_name(name: str) -> tuple[str, Role]:
    """The module a tensor belongs to, in the base model's own naming, and the tensor's role."""
    bare = name.removeprefix(_PEFT_PREFIX)
    for pattern, role in _SUFFIXES:
        if match := pattern.search(bare):
            return bare[: match.start()], role
    return bare, Role.OTHER


def embedding_side(module: str) -> str | None:
    """`input`, `output`, or None where the module is no vocabulary matrix."""
    leaf = module.rpartition(".")[2]
    if leaf in _INPUT_EMBEDDINGS:
        return "input"
    return "output" if leaf in _OUTPUT_EMBEDDINGS else None


def parameter_of(config: Mapping[str, Any], module: str) -> str | None:
    """The parameter that a LoRA is on where PEFT wraps parameters (target_parameters, fused experts); else None.

    Where both of an expert layer's parameters carry LoRA, PEFT names the inner one `experts.base_layer`.
    """
    inner = module.removesuffix(".base_layer")
    targets: Iterable[str] = config.get("target_parameters") or ()
    leaves = [(target, target.rpartition(".")[2]) for target in targets]
    named = {leaf for target, leaf in leaves if f".{inner}.{leaf}".endswith(f".{target}")}
    if len(named) == 1:
        return named.pop()
    return _expert_parameter(module)


def _expert_parameter(module: str) -> str | None:
    if module.endswith(".experts.base_layer"):
        return "gate_up_proj"
    return "down_proj" if module.endswith(".experts") else None


def rank_of(config: Mapping[str, Any], module: str) -> int:
    """The rank that PEFT gives a module: rank_pattern's, else r."""
    return _match(config.get("rank_pattern"), _pattern_key(config, module)) or int(config["r"])


def scaling_of(config: Mapping[str, Any], module: str) -> float:
    """What multiplies B·A: alpha / r, or alpha / sqrt(r) with rsLoRA, by the patterns."""
    alpha = _match(config.get("alpha_pattern"), _pattern_key(config, module))
    return _scaling(config, rank_of(config, module), alpha)


def plain_scaling(config: Mapping[str, Any], module: str | None = None) -> float:
    """What a reader applies that ignores the patterns; given a module, one that knows no parameters but experts'."""
    if module is None:
        return _scaling(config, int(config["r"]), None)
    parameter = _expert_parameter(module)
    key = f"{module.removesuffix('.base_layer')}.{parameter}" if parameter else module
    rank, alpha = (_match(config.get(name), key) for name in ("rank_pattern", "alpha_pattern"))
    return _scaling(config, rank or int(config["r"]), alpha)


def _scaling(config: Mapping[str, Any], rank: int, alpha: float | None) -> float:
    known = float(config["lora_alpha"]) if alpha is None else alpha
    return known / (rank**0.5 if config.get("use_rslora") else rank)


def _pattern_key(config: Mapping[str, Any], module: str) -> str:
    """The name that PEFT compares with a pattern's keys: of the parameter where LoRA is on one."""
    parameter = parameter_of(config, module)
    return f"{module.removesuffix('.base_layer')}.{parameter}" if parameter else module


def _match(pattern: Mapping[str, Any] | None, name: str) -> Any:
    """The value of the first key that ends the name."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return None
