"""Ranks that stop at the same step: one small all-reduce a step, on CPU, so that no accelerator is waited for."""

from __future__ import annotations

import signal
from types import FrameType

import torch.distributed as dist
from torch import Tensor, tensor


class StopSignal:
    """SIGTERM to this rank. Until `install`, Python's default ends the process; afterwards a step is finished first."""

    def __init__(self) -> None:
        self.received = False

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._receive)
        # Ctrl-C in a terminal reaches the whole foreground group; the parent decides.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        self.received = True


class Consensus:
    """What any rank knows, every rank knows.

    Create it after the process group, on every rank.
    """

    def __init__(self) -> None:
        self._group = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # gloo beside nccl: a flag on the accelerator would make the host wait for every step.
            self._group = dist.new_group(backend="gloo")

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on any rank. Every rank must call it at the same point."""
        if self._group is None:
            return list(flags)
        votes: Tensor = tensor([int(flag) for flag in flags])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group)
        return [bool(vote) for vote in votes]


def share_from_rank_zero(value: str | None) -> str | None:
    """Rank 0's `value`, on every rank: on other nodes nobody looked for the checkpoint to resume from."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
