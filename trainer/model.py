"""The tokenizer and the model, with the vocabulary grown for added tokens and nothing else changed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.settings import Settings
from trainer.library_warnings import telling_warnings
from trainer.pretrained import load_tokenizer_files, load_whole_model

log = logging.getLogger("trainer")


@dataclass(frozen=True)
class LoadedTokenizer:
    """:param known_tokens: size of the vocabulary before tokens were added; ids from here on are new"""

    tokenizer: PreTrainedTokenizerBase
    known_tokens: int


def load_tokenizer(settings: Settings, say: Callable[[str], None] = log.info) -> LoadedTokenizer:
    """The tokenizer, with `add_special_tokens` added; a missing EOS token is added too, except to a tokenizer of its own."""
    values = settings.values
    name = values.get("tokenizer_name_or_path") or values["model_name_or_path"]
    with telling_warnings(say):
        tokenizer = load_tokenizer_files(
            name,
            trust_remote_code=bool(values.get("trust_remote_code")),
            revision=values.get("revision") or "main",
            cache_dir=values.get("cache_dir"),
        )
    known_tokens = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": values.get("add_special_tokens") or []})
    if tokenizer.eos_token is None and not values.get("tokenizer_name_or_path"):
        tokenizer.add_special_tokens({"eos_token": "</s>"})
    for key in ("eos_token", "pad_token"):
        if values.get(key):
            _set_token(tokenizer, key, values[key])
    if tokenizer.pad_token is None:
        # Padding is masked everywhere, so no token of its own is needed for it.
        tokenizer.pad_token = tokenizer.eos_token
    return LoadedTokenizer(tokenizer, known_tokens)


def _set_token(tokenizer: PreTrainedTokenizerBase, key: str, token: str) -> None:
    if token not in tokenizer.get_vocab():
        raise ConfigError(
            f"Config key {key!r} is {token!r}, which the tokenizer does not know. "
            f"Name a token of its vocabulary, or add it with add_special_tokens."
        )
    setattr(tokenizer, key, token)


def load_model(
    settings: Settings,
    *,
    attention: str | None,
    device: torch.device | None = None,
    quantization: Any = None,
    say: Callable[[str], None] = log.info,
) -> PreTrainedModel:
    """The base model in the config's dtype (bfloat16 unless said otherwise), from safetensors only.

    :param attention: transformers' `attn_implementation`; None lets transformers choose
    :param say: what transformers warns of
    :param device: straight onto this accelerator, without a copy in the container's memory; None loads on the CPU
    """
    values = settings.values
    kwargs: dict[str, Any] = {
        "dtype": _resolve_dtype(str(values.get("dtype") or "bfloat16")),
        "trust_remote_code": bool(values.get("trust_remote_code")),
        "cache_dir": values.get("cache_dir"),
        "revision": values.get("revision") or "main",
        **(values.get("model_init_kwargs") or {}),
    }
    if attention:
        kwargs.setdefault("attn_implementation", attention)
    if device is not None:
        kwargs.setdefault("device_map", {"": device})
    if quantization is not None:
        kwargs["quantization_config"] = quantization
    with telling_warnings(say):
        model = load_whole_model(values["model_name_or_path"], **kwargs)
    model.config.use_cache = False
    return model


def _resolve_dtype(name: str) -> Any:
    return name if name == "auto" else getattr(torch, name.removeprefix("torch."))


def grow_vocabulary(
    model: PreTrainedModel, loaded: LoadedTokenizer, *, multiple_of: int, say: Callable[[str], None]
) -> int:
    """Give each new token a row, and return by how many rows the vocabulary grew.

    A padded vocabulary that has room is left as it is. New rows start as the mean of the known tokens' rows, as in
    fms-hf-tuning; no other row changes.
    """
    rows_before = model.get_input_embeddings().weight.shape[0]
    rows = max(math.ceil(len(loaded.tokenizer) / multiple_of) * multiple_of, rows_before)
    if rows == rows_before:
        return 0
    known = min(loaded.known_tokens, rows_before)
    model.resize_token_embeddings(rows, mean_resizing=False)
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        if embeddings is not None:
            with torch.no_grad():
                weight = embeddings.weight
                weight[rows_before:] = weight[:known].float().mean(dim=0).to(weight.dtype)
    say(
        f"The vocabulary grew from {rows_before} to {rows} rows for {len(loaded.tokenizer) - known} new tokens."
    )
    return rows - rows_before


def find_new_tokens(model: PreTrainedModel, loaded: LoadedTokenizer, *, new_rows: int) -> list[int]:
    """Ids whose rows the base never trained: they were added here, or the base had no row for them.

    :param new_rows: by how much `grow_vocabulary` grew the model
    """
    rows_before = model.get_input_embeddings().weight.shape[0] - new_rows
    return list(range(min(loaded.known_tokens, rows_before), len(loaded.tokenizer)))
