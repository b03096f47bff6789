"""What a model's LM head allows the loss: the trained positions alone, and an adapter on it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import trl.trainer.sft_trainer as trl_sft
from peft.tuners.tuners_utils import BaseTunerLayer


def takes_positions(model: Any) -> bool:
    """The causal LM's own forward has `logits_to_keep`, and no virtual tokens shift its positions."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return False
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(type(base).forward).parameters


@contextlib.contextmanager
def lm_head_adapters_allowed() -> Iterator[None]:
    """Pass by trl's refusal of an adapter on lm_head: its fused head would ignore it, the loss above does not."""
    layer_kind = trl_sft.BaseTunerLayer
    trl_sft.BaseTunerLayer = ()  # isinstance(layer, ()) is False
    try:
        yield
    finally:
        trl_sft.BaseTunerLayer = layer_kind


def adapts_head(model: Any) -> bool:
    return isinstance(model.get_output_embeddings(), BaseTunerLayer)
