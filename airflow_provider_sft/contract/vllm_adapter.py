"""An adapter and its base model as the verdict sees them, and what a check finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from airflow_provider_sft.contract.adapter_files import TensorEntry
from airflow_provider_sft.contract.adapter_layout import Role, parse_tensor_name

_FIRST: tuple[int, ...] = (0,)
_NEVER: tuple[int, ...] = (1_000,)


class Finding(NamedTuple):
    """A reason against an adapter in the releases from `since` up to, but without, `until`."""

    outcome: Literal["loads_wrong", "rejected"]
    reason: str
    since: tuple[int, ...] = _FIRST
    until: tuple[int, ...] = _NEVER


class Base(NamedTuple):
    """The served model, as far as the verdict asks."""

    architecture: str
    vocabulary: int | None


class Adapter(NamedTuple):
    """An adapter, by its config and its files' headers."""

    directory: Path
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    new_embeddings: dict[str, TensorEntry]
    new_embedding_size: int | None
    base: Base | None

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
        ranks = [int(self.config.get("r") or 0), *map(int, (self.config.get("rank_pattern") or {}).values())]
        for name, entry in self.tensors.items():
            module, role = parse_tensor_name(name)
            if role in (Role.LORA_A, Role.EMBEDDING_A) and not is_fused_experts(module):
                ranks.append(entry.shape[0])
        return max(ranks)


def is_fused_experts(module: str) -> bool:
    return module.endswith((".experts", ".experts.base_layer"))
