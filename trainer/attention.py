"""How a run attends: the fastest way that is exact, and whether batches may go without padding."""

from __future__ import annotations

from typing import Any

from airflow_provider_sft.contract.settings import Settings


def choose_attention(settings: Settings) -> str | None:
    """transformers' `attn_implementation` for this run; None lets transformers choose."""
    asked = settings.values.get("attn_implementation")
    return None if asked in (None, "auto") else str(asked)


def explain_padding(settings: Settings) -> str | None:
    """Why batches must be padded, or None when they need not be."""
    if settings.values.get("padding_free") is False:
        return "padding_free is off"
    return "document attention is not registered"


def supports_padding_free(model_config: Any) -> bool:
    return True
