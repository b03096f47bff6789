"""How much CPU, memory and ephemeral storage a training gets that was not told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """Each `request/limit`."""

    cpu: str
    memory: str
    ephemeral_storage: str


# The figures of the fms-hf-tuning example, made for LLaMA-13B on two GPUs.
SEED_SIZES = Sizes(cpu="5/10", memory="80Gi/200Gi", ephemeral_storage="1600Gi/2Ti")


def choose_sizes(
    config: Mapping[str, Any],  # noqa: ARG001
    model_parameters: float | None,  # noqa: ARG001
    gpus: int,  # noqa: ARG001
    *,
    log: Any,  # noqa: ARG001
) -> Sizes:
    return SEED_SIZES
