"""The accelerator of a rank: how its memory is handed out, and whether the model loads straight onto it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from trl import SFTConfig

_ALLOCATOR_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
# Whose launch deals the weights out to the ranks.
_DEALERS = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")


def take_accelerator(args: SFTConfig, environ: Mapping[str, str] = os.environ) -> torch.device | None:
    """Where this rank's model loads: its own accelerator; None where FSDP or DeepSpeed deal the weights out."""
    let_memory_grow(args.device, environ)
    dealt_out = any(environ.get(f"ACCELERATE_USE_{dealer}", "").lower() == "true" for dealer in _DEALERS)
    if dealt_out or args.fsdp or args.deepspeed or args.device.type == "cpu":
        return None
    return args.device


def let_memory_grow(device: torch.device, environ: Mapping[str, str]) -> None:
    """Batches differ in length: blocks of fixed sizes would leave much of a GPU's memory in pieces that fit none.

    Virtual GPUs, WSL and some boards refuse it at the first allocation. A user's own setting stands.
    """
    if device.type != "cuda" or any(name in environ for name in _ALLOCATOR_NAMES):
        return
    _set_allocator("expandable_segments:True")
    try:
        torch.empty(1, device=device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        _set_allocator("expandable_segments:False")


def _set_allocator(settings: str) -> None:
    now = getattr(torch._C, "_accelerator_setAllocatorSettings", None)  # noqa: SLF001
    (now or torch.cuda.memory._set_allocator_settings)(settings)  # noqa: SLF001
