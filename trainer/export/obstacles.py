"""Why an adapter cannot be made fit for vLLM, or cannot be merged. Each says what else can be done."""

from __future__ import annotations

from airflow_provider_sft.contract.adapter_layout import Role, embedding_side
from airflow_provider_sft.contract.errors import ExportError
from airflow_provider_sft.contract.vllm_features import find_adapter_obstacle, find_merge_obstacle
from trainer.export.source import Source


def refuse_merge(source: Source) -> None:
    """:raises ExportError: no weights of the base model's shape do what this adapter does"""
    if obstacle := find_merge_obstacle(source.config):
        raise ExportError(obstacle, advice="Drop lora_post_process_for_vllm, or tune a plain LoRA.")


def refuse_adapter(source: Source) -> None:
    """:raises ExportError: no plain LoRA does what this adapter does, so that only merging is right"""
    refuse_merge(source)
    if obstacle := find_adapter_obstacle(source.config):
        raise ExportError(obstacle)
    for role in (Role.WHOLE, Role.BIAS, Role.OTHER):
        others = [module for module in source.modules_with(role) if embedding_side(module) is None]
        if others:
            raise ExportError(
                f"{others[0]!r} was tuned whole (modules_to_save), which vLLM takes in no adapter of a language "
                "model. Set vllm_export to 'merged'."
            )
