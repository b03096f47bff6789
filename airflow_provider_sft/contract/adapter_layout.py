"""What PEFT's names say: which module a tensor belongs to, what it is to it, and how the module is scaled."""

from __future__ import annotations

import enum
import functools
import re
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


def match_pattern(pattern: dict[str, Any], module: str) -> Any:
    """The value that PEFT's `rank_pattern` or `alpha_pattern` holds for a module: the first key that ends its name.

    Fused experts are matched by their parameter's name, as in PEFT.
    """
    if module.endswith(".experts.base_layer"):
        module = module.removesuffix(".base_layer") + ".gate_up_proj"
    elif module.endswith(".experts"):
        module += ".down_proj"
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return None


def scaling_of(config: dict[str, Any], module: str | None = None) -> float:
    """What multiplies B·A: alpha / r, or alpha / sqrt(r) with rsLoRA.

    :param module: None asks for what a reader that ignores the patterns applies
    """
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    if module is not None:
        rank = match_pattern(config.get("rank_pattern") or {}, module) or rank
        alpha_override = match_pattern(config.get("alpha_pattern") or {}, module)
        alpha = alpha if alpha_override is None else alpha_override
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)
