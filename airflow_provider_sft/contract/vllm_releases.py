"""What vLLM's releases differ in when they load a LoRA adapter. Measured on the released wheels (docs/vllm.md).

Data and look-ups alone; `vllm` judges with it.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

from airflow_provider_sft.contract.errors import ConfigError

MAX_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes in every release
DEFAULT_MAX_LORA_RANK = 16
DEFAULT_EXTRA_VOCABULARY = 256
MAX_EXTRA_VOCABULARY = 512

_TABLE_FILE = Path(__file__).with_name("vllm_architectures.json")
_EMBEDDINGS_TAKEN = {
    "e": frozenset({"embed_tokens", "lm_head"}),
    "w": frozenset({"wte", "lm_head"}),
    "i": frozenset({"embed_tokens"}),
}
# Architectures whose experts vLLM keeps fused, so that it reads PEFT's fused expert LoRA as it is.
_FUSED_EXPERT_ARCHITECTURES = frozenset(
    {
        "GptOssForCausalLM",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeForConditionalGeneration",
        "Qwen3OmniMoeForConditionalGeneration",
    }
)


class ReleaseRange(NamedTuple):
    """Releases that treat every adapter alike. `measured` are the columns of the architecture table."""

    first: str
    last: str
    measured: tuple[str, ...]

    @property
    def start(self) -> tuple[int, ...]:
        return version_key(self.first)

    def __str__(self) -> str:
        return self.first if self.first == self.last else f"{self.first}-{self.last}"


RANGES = (
    ReleaseRange("0.8.5", "0.11.0", ("0.8.5", "0.11.2")),
    ReleaseRange("0.11.1", "0.11.2", ("0.11.2",)),
    ReleaseRange("0.12", "0.30", ("0.12.0", "0.30.0")),
    ReleaseRange("0.31", "0.31", ("0.31.0",)),
    ReleaseRange("0.32", "0.33", ("0.31.0", "0.33.0")),
)
EXPERT_LORA = (0, 11, 1)  # MoE expert layers take LoRA
NO_EXTRA_VOCABULARY = (
    0,
    12,
)  # new_embeddings.safetensors is ignored, widths must fit, frozen copies are skipped
CLASSIFIER_HEADS = (0, 31)  # modules_to_save may name classifier or score
PATTERNS = (0, 32)  # rank and alpha patterns are applied; what is not implemented is refused


class ArchitectureSupport(NamedTuple):
    """What a release takes for an architecture. `known` is False for one that its table does not list."""

    known: bool
    lora: bool
    embeddings: frozenset[str]


def version_key(version: str) -> tuple[int, ...]:
    """`0.30.1.post1` → (0, 30, 1)

    :raises ConfigError: not a version number
    """
    parts = [part for part in version.strip().removeprefix("v").split(".") if part.isdigit()]
    if not parts:
        raise ConfigError(f"vLLM version {version!r} is no version number. Give one like '0.30' or '0.33.0'.")
    return tuple(int(part) for part in parts)


def find_range(version: str) -> ReleaseRange:
    """The range that holds a release; the newest range for one that came after it was measured.

    :raises ConfigError: older than what was measured
    """
    key = version_key(version)
    for candidate in reversed(RANGES):
        if key >= candidate.start:
            return candidate
    raise ConfigError(
        f"vLLM {version} is older than {RANGES[0].first}, the oldest release measured. Use a newer one."
    )


def support_of(architecture: str, release_range: ReleaseRange) -> ArchitectureSupport:
    """The least that any measured release of the range takes."""
    row = _architecture_table().get(architecture)
    codes = [row[release] for release in release_range.measured] if row else []
    if not codes:
        return ArchitectureSupport(known=False, lora=False, embeddings=frozenset())
    taken = [_EMBEDDINGS_TAKEN.get(code, frozenset()) for code in codes]
    return ArchitectureSupport(
        known="-" not in codes,
        lora=not set(codes) & {"-", "n"},
        embeddings=frozenset.intersection(*taken),
    )


def keeps_experts_fused(architecture: str) -> bool:
    return architecture in _FUSED_EXPERT_ARCHITECTURES


def smallest_max_rank(rank: int) -> int | None:
    """The least --max-lora-rank that holds `rank`; None when vLLM takes none so large."""
    return next((choice for choice in MAX_LORA_RANKS if choice >= rank), None)


@functools.cache
def _architecture_table() -> dict[str, dict[str, str]]:
    document = json.loads(_TABLE_FILE.read_text(encoding="utf-8"))
    return {
        name: dict(zip(document["releases"], codes, strict=True))
        for name, codes in document["architectures"].items()
    }
