"""DDP's buckets of gradients: after a resume, ranks add up in the order in which an undisturbed run does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

_COMMUTING_RANKS = 2  # a + b is b + a; of three, the order decides the last bit


def needs_rehearsal(model: Any) -> bool:
    """Whether `model` sorts its gradients into other buckets after its first step."""
    return (
        isinstance(model, DistributedDataParallel)
        and not model.find_unused_parameters
        and torch.distributed.get_world_size(model.process_group) > _COMMUTING_RANKS
    )


def rehearse(model: torch.nn.Module, take_step: Callable[[], object]) -> None:
    """Take a step that leaves nothing behind but the order of the gradients.

    DDP's first step sums all gradients in one bucket, the later ones in buckets filled in the order in which the first
    step's gradients came; where a gradient lies decides which rank begins its sum. So the first step after a resume
    would differ in its last bits from the same step of an undisturbed run, which is not that run's first.

    :param take_step: forward and backward, of every rank
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        take_step()
    model.zero_grad()
