"""Whether an export that a config asks for can be right at all: asked before a GPU is taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from airflow_provider_sft.contract.adapter_files import TensorEntry
from airflow_provider_sft.contract.adapter_layout import embedding_side
from airflow_provider_sft.contract.base_model import BaseModel
from airflow_provider_sft.contract.codec import Config
from airflow_provider_sft.contract.rules import tuning_method_of
from airflow_provider_sft.contract.vllm_adapter import Adapter
from airflow_provider_sft.contract.vllm_features import (
    check_architecture,
    check_rank,
    find_adapter_obstacle,
    find_merge_obstacle,
)
from airflow_provider_sft.contract.vllm_releases import measured_releases


def find_export_obstacle(config: Config) -> str | None:
    """A sentence, or None: what remains depends on the adapter that comes out.

    :param config: under present names, each value fit for its key
    """
    method = tuning_method_of(config)
    if not config.get("lora_post_process_for_vllm") or method == "none":
        return None
    if obstacle := _obstacle_of(config, method):
        return f"Config key 'lora_post_process_for_vllm' is true, and this adapter cannot be exported. {obstacle}"
    return None


def _obstacle_of(config: Config, method: str) -> str | None:
    if method == "pt":
        return "Prompt tuning leaves virtual tokens, and vLLM loads LoRA adapters alone. Drop lora_post_process_for_vllm."
    if method == "alora":
        return find_merge_obstacle({"alora_invocation_tokens": True})
    if config.get("vllm_export") == "merged":
        return find_merge_obstacle(config)
    whole = [name for name in config.get("modules_to_save") or () if not embedding_side(name)]
    if whole and not find_merge_obstacle(config):
        return f"vLLM takes no modules_to_save of a language model ({', '.join(whole)}). Set vllm_export to 'merged'."
    return find_adapter_obstacle(config)


def find_base_obstacle(config: Config, base: BaseModel) -> str | None:
    """A sentence, or None: whether any measured release takes an adapter of this kind on this base model.

    :param config: under present names, each value fit for its key
    """
    asked = config.get("lora_post_process_for_vllm") and tuning_method_of(config) != "none"
    if not asked or config.get("vllm_export") == "merged" or not base.architecture:
        return None
    adapter = _foresee(config, base)
    reasons = [_find_rejection(adapter, release) for release in measured_releases()]
    if not all(reasons):
        return None
    return (
        "Config key 'lora_post_process_for_vllm' is true, and no measured release of vLLM takes this adapter: "
        f"{reasons[-1]}"
    )


def _find_rejection(adapter: Adapter, release: str) -> str | None:
    found = [*check_rank(adapter), *check_architecture(adapter, release)]
    return next((finding.reason for finding in found if finding.applies_to(release)), None)


def _foresee(config: Config, base: BaseModel) -> Adapter:
    """The adapter as far as it is known before training: its rank, and which embeddings carry LoRA."""
    ranks = {} if config.get("rank_pattern") else {"r": config.get("r")}
    tensors = {
        f"{name}.lora_A.weight": TensorEntry(Path(), "F32", (1, 1), 0, 0)
        for name in _embeddings(config, base)
    }
    return Adapter(Path(), ranks, tensors, {}, None, base)


def _embeddings(config: Config, base: BaseModel) -> Iterator[str]:
    """The embeddings among target_modules that this base model has."""
    targets = config.get("target_modules")
    for target in targets if isinstance(targets, list) and base.shapes else ():
        leaf = target.rpartition(".")[2]
        is_tied_output = leaf == "lm_head" and base.is_tied
        if embedding_side(leaf) and (
            is_tied_output or any(n.endswith(f"{leaf}.weight") for n in base.shapes)
        ):
            yield leaf
