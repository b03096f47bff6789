"""Whether an export that a config asks for can be right at all: asked before a GPU is taken."""

from __future__ import annotations

from airflow_provider_sft.contract.codec import Config
from airflow_provider_sft.contract.rules import tuning_method_of
from airflow_provider_sft.contract.vllm_features import find_adapter_obstacle, find_merge_obstacle


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
    find_obstacle = find_merge_obstacle if config.get("vllm_export") == "merged" else find_adapter_obstacle
    return find_obstacle(config)
