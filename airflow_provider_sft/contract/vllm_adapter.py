"""An adapter and its base model as the verdict sees them, and what a check finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from airflow_provider_sft.contract.adapter_files import TensorEntry
from airflow_provider_sft.contract.adapter_layout import Role, parse_tensor_name
from airflow_provider_sft.contract.base_model import BaseModel
from airflow_provider_sft.contract.vllm_releases import follows


class Finding(NamedTuple):
    """A reason against an adapter in the releases that follow the rule `since` and not yet the rule `until`."""

    outcome: Literal["loads_wrong", "rejected"]
    reason: str
    since: str | None = None
    until: str | None = None

    def applies_to(self, release: str) -> bool:
        return (self.since is None or follows(release, self.since)) and not (
            self.until is not None and follows(release, self.until)
        )


class Adapter(NamedTuple):
    """An adapter, by its config and its files' headers."""

    directory: Path
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    new_embeddings: dict[str, TensorEntry]
    new_embedding_size: int | None
    base: BaseModel | None
    nonfinite: str | None = None  # a tensor that holds NaN or infinity

    @property
    def num_new_rows(self) -> int:
        return max((entry.shape[0] for entry in self.new_embeddings.values()), default=0)

    @property
    def lora_modules(self) -> list[str]:
        roles = (Role.LORA_A, Role.EMBEDDING_A)
        parsed = (parse_tensor_name(name) for name in self.tensors)
        return [module for module, role in parsed if role in roles]

    @property
    def max_rank(self) -> int:
        """The largest rank of any module; fused experts stack theirs, so that they count by the config's r."""
        ranks = [int(self.config.get("r") or 0)]
        for name, entry in self.tensors.items():
            module, role = parse_tensor_name(name)
            if role in (Role.LORA_A, Role.EMBEDDING_A) and not is_fused_experts(module):
                ranks.append(entry.shape[0])
        return max(ranks)

    @property
    def max_named_rank(self) -> int:
        """With the ranks that rank_pattern names, whether a module has them or not: releases since 0.32 count these."""
        return max(self.max_rank, *map(int, (self.config.get("rank_pattern") or {}).values()), 0)


def is_fused_experts(module: str) -> bool:
    return module.endswith((".experts", ".experts.base_layer"))
