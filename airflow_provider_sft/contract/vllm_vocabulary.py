"""How vLLM's releases take an adapter that changes the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

from airflow_provider_sft.contract.adapter_layout import Role, embedding_side, parse_tensor_name
from airflow_provider_sft.contract.vllm_adapter import Adapter, Finding
from airflow_provider_sft.contract.vllm_releases import MAX_EXTRA_VOCABULARY, NO_EXTRA_VOCABULARY

_KEYS = {"input": "input_embeddings", "output": "output_embeddings"}


def check_embedding_width(adapter: Adapter) -> Iterator[Finding]:
    """An embedding's LoRA is as wide as the vocabulary; since 0.12 it must fit the served model's exactly."""
    width, vocabulary = _embedding_width(adapter), _vocabulary(adapter)
    if width is None or vocabulary is None or width == vocabulary:
        return
    reason = f"The LoRA on the embedding has {width} tokens and the base model {vocabulary}."
    yield Finding("rejected", reason, since=NO_EXTRA_VOCABULARY)
    if width > vocabulary + MAX_EXTRA_VOCABULARY:
        yield Finding("rejected", reason, until=NO_EXTRA_VOCABULARY)


def check_new_rows(adapter: Adapter) -> Iterator[Finding]:
    """Rows of added tokens lie in new_embeddings.safetensors: read up to 0.11.2, ignored since."""
    if not adapter.new_embeddings:
        yield from _check_missing_rows(adapter)
        return
    yield from _check_read_rows(adapter)
    if _base_has_the_rows(adapter):
        return
    lost = f"The rows of {adapter.num_new_rows} added tokens are lost"
    reason = f"{lost}: vLLM ignores new_embeddings.safetensors since 0.12. Serve a merged model, or a base with these rows."
    yield Finding("loads_wrong", reason, since=NO_EXTRA_VOCABULARY)
    if set(lora_sides(adapter)) != {"input", "output"} or set(adapter.new_embeddings) != set(_KEYS.values()):
        reason = f"{lost}: vLLM adds them only where embed_tokens and lm_head both carry LoRA."
        yield Finding("loads_wrong", reason, until=NO_EXTRA_VOCABULARY)


def _check_read_rows(adapter: Adapter) -> Iterator[Finding]:
    """Up to 0.11.2 the rows are read for each embedding that carries LoRA."""
    sides = lora_sides(adapter)
    if missing := [side for side in sides if _KEYS[side] not in adapter.new_embeddings]:
        reason = f"new_embeddings.safetensors lacks {_KEYS[missing[0]]}, which vLLM wants for its LoRA."
        yield Finding("rejected", reason, until=NO_EXTRA_VOCABULARY)
    if sides and adapter.num_new_rows > MAX_EXTRA_VOCABULARY:
        reason = f"{adapter.num_new_rows} added tokens are more than --lora-extra-vocab-size takes ({MAX_EXTRA_VOCABULARY})."
        yield Finding("rejected", reason, until=NO_EXTRA_VOCABULARY)


def _check_missing_rows(adapter: Adapter) -> Iterator[Finding]:
    """PEFT skips resized embeddings without a word when it does not find the base model's config."""
    vocabulary, size = _vocabulary(adapter), adapter.new_embedding_size
    whole = any(parse_tensor_name(name)[1] in (Role.WHOLE, Role.ROWS) for name in adapter.tensors)
    if vocabulary is not None and size is not None and size > vocabulary and not whole:
        yield Finding("loads_wrong", f"The rows of {size - vocabulary} added tokens are not in the adapter.")


def _base_has_the_rows(adapter: Adapter) -> bool:
    vocabulary = adapter.base.vocabulary if adapter.base else None
    return vocabulary is not None and vocabulary == (adapter.new_embedding_size or _embedding_width(adapter))


def _vocabulary(adapter: Adapter) -> int | None:
    """The served model's; guessed from the adapter's own record where its config.json was not found."""
    if adapter.base is not None:
        return adapter.base.vocabulary
    width = _embedding_width(adapter)
    return width - adapter.num_new_rows if width is not None else None


def lora_sides(adapter: Adapter) -> list[str]:
    """Which of the two embeddings carry LoRA."""
    return [side for side in map(embedding_side, adapter.lora_modules) if side]


def _embedding_width(adapter: Adapter) -> int | None:
    widths = []
    for name, entry in adapter.tensors.items():
        module, role = parse_tensor_name(name)
        if role is Role.EMBEDDING_A:
            widths.append(entry.shape[1])
        elif role is Role.LORA_B and embedding_side(module) == "output":
            widths.append(entry.shape[0])
    return max(widths, default=None)
