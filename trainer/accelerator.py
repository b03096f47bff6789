"""The accelerator of a rank: how its memory is handed out, and whether the model loads straight onto it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch
from trl import SFTConfig

from trainer.devices import count_expected, missing
from trainer.launch import COUNTED_GPUS_ENV_VAR

_ALLOCATOR_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
# Whose launch deals the weights out to the ranks.
_DEALERS = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")


def refuse_missing_gpus(
    *, wants_cpu: bool, say: Callable[[str], None], environ: Mapping[str, str] = os.environ
) -> None:
    """The driver counted the GPUs; torch may be built without CUDA, or find the driver too old for its own.

    :raises AcceleratorsMissingError: torch can use fewer than were requested
    """
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wants_cpu or environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return
    if usable < (expected := count_expected(environ)):
        raise missing(expected, usable, [_ask_torch()])
    if not usable and int(environ.get(COUNTED_GPUS_ENV_VAR, "0")):
        say(f"The driver has GPUs that torch cannot use, so this run is on the CPU: {_ask_torch()}.")


def _ask_torch() -> str:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split()).rstrip(".")
    return f"torch {torch.__version__} sees {torch.cuda.device_count()} devices"


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
