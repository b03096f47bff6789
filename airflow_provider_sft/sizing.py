"""How much CPU, memory and ephemeral storage a training gets that was not told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_sft.contract.estimate import Amount, Estimate, describe_bytes, estimate_run
from airflow_provider_sft.contract.settings import resolve_config

_GIB = 2**30
# The estimate is what a run needs at least; rows, caches and fragmentation take more.
_HEADROOM = 1.5
# /tmp, logs and the container's own layer.
_SCRATCH_BYTES = 4 * _GIB
# Rows while they are read and tokenised.
_PREPARATION_BYTES = 2 * _GIB
_BF16_BYTES = 2
_CPUS_PER_GPU = 2.5


@dataclass(frozen=True)
class Sizes:
    """`cpu`, `memory` and `ephemeral-storage`, each `request/limit`, and why each."""

    figures: Mapping[str, str]
    reasons: Mapping[str, str]


# The figures of the fms-hf-tuning example, made for LLaMA-13B on two GPUs.
_SEED_FIGURES = {"cpu": "5/10", "memory": "80Gi/200Gi", "ephemeral-storage": "1600Gi/2Ti"}


def choose_sizes(
    config: Mapping[str, Any], *, gpus: int, model_parameters: float | None, volume_paths: Sequence[str]
) -> Sizes:
    """
    :param config: a right one, empty where it is not known here
    :param volume_paths: where volumes that outlive the pod are mounted
    """
    values = resolve_config(config).values if config else {}
    estimate = estimate_run(values, gpus=gpus, model_parameters=model_parameters) if values else None
    if estimate is None:
        return _seed_sizes(config)
    memory = _with_headroom(_memory(estimate, gpus))
    kept_in_pod = not any(_lies_in(str(values["output_dir"]), path) for path in volume_paths)
    storage, storage_reason = _storage(estimate, kept_in_pod=kept_in_pod)
    cpus = max(1, math.ceil(_CPUS_PER_GPU * (gpus or 1)))
    return Sizes(
        figures={
            "cpu": f"{cpus}/{2 * cpus}",
            "memory": f"{memory}Gi/{2 * memory}Gi",
            "ephemeral-storage": f"{storage}Gi/{2 * storage}Gi",
        },
        reasons={
            "cpu": f"{_CPUS_PER_GPU} a GPU",
            "memory": f"at least {estimate.host} by {estimate.model.source}; {_beside(estimate, gpus)}",
            "ephemeral-storage": storage_reason,
        },
    )


def _memory(estimate: Estimate, gpus: int) -> Amount:
    beside = sum(_left_out(estimate, gpus).values())
    return Amount(estimate.host.size_bytes + beside, estimate.host.why)


def _left_out(estimate: Estimate, gpus: int) -> dict[str, int]:
    """What the least leaves out: rows on a CPU; on the way to one GPU, weights in bfloat16."""
    sizes = {
        "weights on their way to the GPU": estimate.model.parameters * _BF16_BYTES if gpus == 1 else 0,
        "rows while they are trained": 0 if gpus else estimate.activations.size_bytes,
        "rows while they are prepared": _PREPARATION_BYTES,
    }
    return {name: size_bytes for name, size_bytes in sizes.items() if size_bytes}


def _beside(estimate: Estimate, gpus: int) -> str:
    parts = [f"{name} {describe_bytes(size)}" for name, size in _left_out(estimate, gpus).items()]
    return f"{', '.join(parts)}; and half as much again"


def _seed_sizes(config: Mapping[str, Any]) -> Sizes:
    name = config.get("model_name_or_path")
    unknown = f"the size of {name!r} is not known here" if name else "the config is not known here"
    reason = f"{unknown}: these are figures for 13 B parameters. Give it, or model_parameters"
    return Sizes(_SEED_FIGURES, reasons=dict.fromkeys(_SEED_FIGURES, reason))


def _storage(estimate: Estimate, *, kept_in_pod: bool) -> tuple[int, str]:
    """In GiB, and why."""
    needed = {"scratch and logs": Amount(_SCRATCH_BYTES, "our choice")}
    if estimate.download.size_bytes:
        needed["downloads"] = estimate.download
    if kept_in_pod:
        needed["results in output_dir, which is on no volume,"] = estimate.storage
    reasons = [f"{what} need at least {amount}" for what, amount in needed.items()]
    size = Amount(sum(amount.size_bytes for amount in needed.values()), "")
    return _with_headroom(size), "; ".join(reasons)


def _with_headroom(amount: Amount) -> int:
    return max(1, math.ceil(amount.size_bytes * _HEADROOM / _GIB))


def _lies_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
