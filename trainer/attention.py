"""How a run attends: the fastest way that is exact, and whether its batches may go without padding.

A batch without padding is one row of documents. `document_causal` is a causal attention that ends at each document's
start: transformers' sdpa would build a dense mask, tokens by tokens, and compute all of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from airflow_provider_sft.contract.rules import tuning_method_of
from airflow_provider_sft.contract.settings import Settings
from trainer.pretrained import load_model_config

DOCUMENT_CAUSAL = "document_causal"
# Causal LMs whose forward without padding equals the padded one: tests/trainer/test_attention.py builds and compares.
# Left out: state space and linear attention (documents leak), ALiBi (positions come from the mask), soft-capped scores
# and attention sinks (sdpa has neither), encoders.
_EXACT_MODEL_TYPES = """
apertus arcee bitnet cohere cohere2 cwm ernie4_5 ernie4_5_moe exaone4 flex_olmo gemma gemma3_text glm glm4 glm4_moe
gpt2 gpt_bigcode gpt_neox granite granitemoe granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe jais2 jetmoe llama
minimax_m2 ministral ministral3 mistral mixtral nanochat nemotron olmo olmo2 olmo3 olmoe persimmon phi phi3 phimoe
qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open stablelm starcoder2 deepseek_v2 deepseek_v3 dots1
"""
PADDING_FREE_MODEL_TYPES = frozenset(_EXACT_MODEL_TYPES.split())
_VARLEN_DTYPES = (torch.bfloat16, torch.float16)
_VARLEN_MAX_HEAD_DIM = 256
# What this torch's varlen_attn takes: `window_size` and `scale` came with 2.11, `enable_gqa` with 2.12.
_VARLEN_OPTIONS = frozenset(inspect.signature(varlen_attn).parameters)
_DEFAULT_MAX_LENGTH = 4096
_PADDED_METHODS = {
    "pt": "prompt tuning puts its virtual tokens before each row",
    "alora": "an aLoRA adapter is activated once a row, for its last document alone",
}


def choose_attention(settings: Settings) -> str | None:
    """Transformers' `attn_implementation` for this run; None lets transformers choose."""
    asked = settings.values.get("attn_implementation")
    if asked not in (None, "auto", "sdpa"):
        return str(asked)
    if explain_padding(settings) is not None:
        return (
            None  # sdpa, or eager for the few models without it: the peer's bloom example runs with flash off
        )
    if asked != "sdpa" and _flash_attention_works(settings):
        return "flash_attention_2"
    return register_document_attention()


def explain_padding(settings: Settings) -> str | None:
    """Why this run's batches must be padded, or None when they need not be."""
    values = settings.values
    asked_for = any(values.get(key) for key in ("padding_free", "packing", "eval_packing"))
    if values.get("padding_free") is False and not asked_for:
        return "padding_free is off"
    if why := _PADDED_METHODS.get(tuning_method_of(values)):
        return why
    if values.get("attn_implementation") == "eager" and not asked_for:
        return "eager attention computes every pair of tokens of a batch"
    config = _read_model_config(values)
    if not supports_padding_free(config):
        return f"a {config.model_type} model is not known to keep the documents of one row apart"
    window = _attention_window(config)
    if window is not None and window < (values.get("max_length") or _DEFAULT_MAX_LENGTH) and not asked_for:
        return (
            f"its layers attend over {window:,} tokens, which needs a mask of every pair of tokens of a batch"
        )
    return None


def supports_padding_free(model_config: Any) -> bool:
    """Whether a model of this kind keeps documents apart that share a row, told by their `position_ids`."""
    config = model_config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        model_config.model_type in PADDING_FREE_MODEL_TYPES
        and kinds <= {"full_attention", "sliding_attention"}
        and not getattr(model_config, "auto_map", None)
    )


def _attention_window(model_config: Any) -> int | None:
    """Tokens that a layer looks back over, where that is limited."""
    config = model_config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    unlimited = "sliding_attention" not in kinds if kinds else not getattr(config, "use_sliding_window", True)
    return None if unlimited else getattr(config, "sliding_window", None)


def _read_model_config(values: Mapping[str, Any]) -> Any:
    return load_model_config(
        values["model_name_or_path"],
        trust_remote_code=bool(values.get("trust_remote_code")),
        revision=values.get("revision") or "main",
        cache_dir=values.get("cache_dir"),
    )


def register_document_attention() -> str:
    """Make `document_causal` known to transformers. A second call changes nothing."""
    AttentionInterface.register(DOCUMENT_CAUSAL, document_attention)
    AttentionMaskInterface.register(DOCUMENT_CAUSAL, document_mask)
    return DOCUMENT_CAUSAL


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it asks for values, which would cut a compiled graph in the middle of it
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
    return _attend_each(query, key, value, lengths, dropout, scaling), None


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


@torch.compiler.disable  # type: ignore[untyped-decorator]  # as many calls as documents: a graph for each number of them
def _attend_each(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], dropout: float, scaling: float | None
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    documents = zip(*(torch.split(states, lengths, dim=2) for states in (query, key, value)), strict=True)
    outputs = [
        scaled_dot_product_attention(
            own_query,
            own_key,
            own_value,
            dropout_p=dropout,
            scale=scaling,
            is_causal=True,
            enable_gqa=grouped,
        ).transpose(1, 2)
        for own_query, own_key, own_value in documents
    ]
    return torch.cat(outputs, dim=1)


def _varlen_fits(query: Tensor, value: Tensor, dropout: float) -> bool:
    return (
        query.is_cuda
        and query.dtype in _VARLEN_DTYPES
        and query.shape[-1] == value.shape[-1] <= _VARLEN_MAX_HEAD_DIM
        and dropout == 0.0
        and "window_size" in _VARLEN_OPTIONS
    )


def _attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, scaling: float | None, longest: int | None
) -> Tensor:
    longest = longest or int(boundaries.diff().max())
    options: dict[str, Any] = {}
    if (groups := query.shape[1] // key.shape[1]) > 1:
        if "enable_gqa" in _VARLEN_OPTIONS:
            options["enable_gqa"] = True
        else:
            key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    own_query, own_key, own_value = (states[0].transpose(0, 1) for states in (query, key, value))
    output = varlen_attn(
        own_query,
        own_key,
        own_value,
        boundaries,
        boundaries,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),
        **options,
    )
    return cast("Tensor", output)[None]


def _flash_attention_works(settings: Settings) -> bool:
    from transformers.utils import is_flash_attn_2_available

    return bool(is_flash_attn_2_available()) and settings.values.get("dtype") in (
        None,
        "auto",
        "bfloat16",
        "float16",
    )
