"""How a run attends: the fastest way that is exact, and whether its batches may go without padding.

A batch without padding is one row of documents. `document_causal` is a causal attention that ends at each document's
start: transformers' sdpa would build a dense mask, tokens by tokens, and compute all of it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from airflow_provider_sft.contract.settings import Settings

DOCUMENT_CAUSAL = "document_causal"
# Causal LMs whose packed forward equals the padded one: tests/trainer/test_attention.py builds each and compares.
# Left out: state space and linear attention (documents leak), ALiBi (positions come from the mask), encoders.
PADDING_FREE_MODEL_TYPES = frozenset(
    ["llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma"]
)
# Documents of like lengths are attended to in one padded call, while padding costs less than so much of the work.
_PADDED_WORK = 2.0
_VARLEN_DTYPES = (torch.bfloat16, torch.float16)
_VARLEN_MAX_HEAD_DIM = 256


def choose_attention(settings: Settings) -> str | None:
    """Transformers' `attn_implementation` for this run; None lets transformers choose."""
    asked = settings.values.get("attn_implementation")
    if asked not in (None, "auto", "sdpa"):
        return str(asked)
    if explain_padding(settings) is not None:
        return None if asked == "auto" else asked
    if asked != "sdpa" and _flash_attention_works(settings):
        return "flash_attention_2"
    return register_document_attention()


def explain_padding(settings: Settings) -> str | None:
    """Why this run's batches must be padded, or None when they need not be."""
    values = settings.values
    if values.get("padding_free") is False:
        return "padding_free is off"
    if values.get("peft_method") == "pt":
        return "prompt tuning puts its virtual tokens before each row"
    asked = values.get("attn_implementation")
    if asked == "eager" and not values.get("padding_free") and not values.get("packing"):
        return "eager attention computes every pair of tokens"
    config = AutoConfig.from_pretrained(
        values["model_name_or_path"],
        trust_remote_code=bool(values.get("trust_remote_code")),
        revision=values.get("revision") or "main",
    )
    if not supports_padding_free(config):
        return f"a {config.model_type} model is not known to keep the documents of one row apart"
    return None


def supports_padding_free(model_config: Any) -> bool:
    """Whether a model of this kind keeps documents apart that share a row, told by their `position_ids`."""
    config = model_config.get_text_config()
    window = getattr(config, "sliding_window", None)
    uses_window = window is not None and getattr(config, "use_sliding_window", True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        config.model_type in PADDING_FREE_MODEL_TYPES
        and kinds <= {"full_attention"}
        and not uses_window
        and not hasattr(model_config, "auto_map")
    )


def register_document_attention() -> str:
    """Make `document_causal` known to transformers. A second call changes nothing."""
    AttentionInterface.register(DOCUMENT_CAUSAL, document_attention)
    AttentionMaskInterface.register(DOCUMENT_CAUSAL, document_mask)
    return DOCUMENT_CAUSAL


def document_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """The documents' boundaries [documents + 1] where the mask is exactly causal within them, else what sdpa takes."""
    one_row = batch_size == 1 and q_length == kv_length and attention_mask is None
    if one_row and not allow_is_causal_skip and not use_vmap:
        boundaries = _find_boundaries(mask_function, q_length, device)
        if boundaries is not None:
            return boundaries
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        use_vmap=use_vmap,
        device=device,
        **kwargs,
    )


def document_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """
    :param query: [1, heads, tokens, head_dim]; key and value may have fewer heads
    :param attention_mask: from `document_mask`
    :returns: [1, tokens, heads, head_dim]
    """
    if attention_mask is None or attention_mask.ndim != 1:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if _varlen_fits(query, value, dropout):
        return _attend_varlen(query, key, value, attention_mask, scaling, kwargs.get("max_length_q")), None
    lengths = attention_mask.diff().tolist()
    attend = (
        _attend_padded
        if len(lengths) * max(lengths) ** 2 <= _PADDED_WORK * sum(n * n for n in lengths)
        else _attend_each
    )
    return attend(query, key, value, lengths, dropout, scaling), None


def _find_boundaries(mask_function: Callable[..., Any], length: int, device: Any) -> Tensor | None:
    """Where documents start, and the end; None when a token does not see its document from the start up to itself.

    The mask is a function of index pairs: three per token are asked.
    """
    tokens = torch.arange(length, device=device)
    row = torch.zeros_like(tokens)

    def sees(queries: Tensor, keys: Tensor) -> Tensor:
        return mask_function(row[: len(queries)], row[: len(queries)], queries, keys)

    starts = torch.ones(length, dtype=torch.bool, device=device)
    starts[1:] = ~sees(tokens[1:], tokens[:-1])
    firsts = tokens[starts]
    own_start = firsts[starts.cumsum(0) - 1]
    before = (own_start - 1).clamp(min=0)
    causal = sees(tokens, own_start).all() & ~sees(tokens[:-1], tokens[1:]).any()
    apart = (~sees(tokens, before) | (own_start == 0)).all()
    if not bool(causal & apart):
        return None
    return torch.cat([firsts, firsts.new_tensor([length])]).to(torch.int32)


def _attend_each(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], dropout: float, scaling: float | None
) -> Tensor:
    documents = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    outputs = [_attend(*document, dropout, scaling) for document in documents]
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1)


def _attend_padded(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], dropout: float, scaling: float | None
) -> Tensor:
    """All documents as a batch. Padding on the right is never attended to: the attention is causal."""
    longest = max(lengths)
    slots = torch.cat([torch.arange(n) + longest * document for document, n in enumerate(lengths)]).to(
        query.device
    )

    def spread(states: Tensor) -> Tensor:
        heads, dim = states.shape[1], states.shape[3]
        room = states.new_zeros(len(lengths) * longest, heads, dim)
        flat = room.index_copy(0, slots, states[0].transpose(0, 1))
        return flat.view(len(lengths), longest, heads, dim).transpose(1, 2)

    output = _attend(spread(query), spread(key), spread(value), dropout, scaling).transpose(1, 2)
    return output.reshape(len(lengths) * longest, *output.shape[2:]).index_select(0, slots)[None]


def _attend(query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None) -> Tensor:
    return scaled_dot_product_attention(
        query,
        key,
        value,
        dropout_p=dropout,
        scale=scaling,
        is_causal=True,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _varlen_fits(query: Tensor, value: Tensor, dropout: float) -> bool:
    return (
        query.is_cuda
        and query.dtype in _VARLEN_DTYPES
        and query.shape[-1] == value.shape[-1] <= _VARLEN_MAX_HEAD_DIM
        and dropout == 0.0
        and importlib.util.find_spec("torch.nn.attention.varlen") is not None
    )


def _attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, scaling: float | None, longest: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest = longest or int(boundaries.diff().max())
    flat = [states[0].transpose(0, 1) for states in (query, key, value)]
    output = varlen_attn(
        *flat, boundaries, boundaries, longest, longest,
        scale=scaling, window_size=(-1, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return output[None]


def _flash_attention_works(settings: Settings) -> bool:
    from transformers.utils import is_flash_attn_2_available

    return bool(is_flash_attn_2_available()) and settings.values.get("dtype") in (
        None,
        "auto",
        "bfloat16",
        "float16",
    )
