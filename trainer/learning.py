"""Whether anything is learned: the schedule before the first step, the trained weights after the last."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from airflow_provider_sft.contract.errors import ConfigError, DivergedError
from airflow_provider_sft.contract.learning_rules import describe_warmup
from trainer.batches import check_batches
from trainer.consensus import Consensus

# The integer type whose bits are a number's; sums are taken over so many numbers at a time, to need no second tensor.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK_NUMBERS = 1 << 22
_NAMED_TENSORS = 3


def check_schedule(args: TrainingArguments, rows: Any, validation: Any = None) -> None:
    """Before the model is loaded, where the number of rows is known.

    :raises ConfigError: the warm-up takes the whole run
    :raises DataError: as `check_batches`
    """
    check_batches(args, rows, validation)
    if args.max_steps > 0 or not isinstance(rows, Sized):
        _check_warmup(args, args.max_steps)
        return
    batches = math.ceil(len(rows) / (args.per_device_train_batch_size * args.world_size))
    steps_an_epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    _check_warmup(args, math.ceil(args.num_train_epochs * steps_an_epoch))


def _check_warmup(args: TrainingArguments, num_steps: int) -> None:
    scheduler = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if sentence := describe_warmup(scheduler, args.warmup_steps, num_steps):
        raise ConfigError(sentence)


class WeightWatch(TrainerCallback):
    """Which trained tensors still have every bit they had when the run started.

    Each rank sums the bits of what it holds of a tensor, so nothing is copied; a resumed run adds what its
    checkpoint says.

    :param consensus: a tensor has changed where any rank's part of it has
    """

    def __init__(self, consensus: Consensus) -> None:
        self._consensus = consensus
        self._start: dict[str, int] = {}
        self._unchanged_before: list[str] | None = []
        self._is_resumed = False

    def resume(self, unchanged: list[str] | None) -> None:
        """:param unchanged: of the checkpoint; None where it does not say"""
        self._is_resumed, self._unchanged_before = True, unchanged

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_kwargs: Any,
    ) -> None:
        _check_warmup(args, state.max_steps)
        self._start = _sum_bits(model)

    def unchanged(self, model: Any) -> list[str] | None:
        """By name; None where it is not known. Every rank must call it."""
        now = _sum_bits(model)
        changed = self._consensus.any(*(now[name] != start for name, start in self._start.items()))
        same = [name for name, has_changed in zip(self._start, changed, strict=True) if not has_changed]
        if not self._is_resumed:
            return same
        before = self._unchanged_before
        return None if before is None else [name for name in same if name in before]

    def check(self, model: Any, args: TrainingArguments, *, on_notice: Callable[[str], None]) -> None:
        """After the last step.

        :raises DivergedError: every trained tensor is bit-identical to the start
        """
        same = self.unchanged(model)
        if not same:
            return
        total = len(self._start)
        if len(same) == total:
            raise DivergedError(
                f"Nothing was learned: all {total} trained tensors are bit-identical to the start of the run.",
                advice=f"Raise learning_rate (it is {args.learning_rate:g}), train more steps, or set torch_dtype to "
                "float32: bfloat16 loses steps smaller than its precision.",
            )
        more = ", …" if len(same) > _NAMED_TENSORS else ""
        on_notice(
            f"{len(same)} of {total} trained tensors are bit-identical to the start of the run: "
            f"{', '.join(same[:_NAMED_TENSORS])}{more}. They had no gradient, or the steps were smaller than the "
            "precision of their type: raise learning_rate, or set torch_dtype to float32."
        )


def _sum_bits(model: Any) -> dict[str, int]:
    """For each trained tensor, the sum of its numbers' bits, of the part that this rank holds."""
    parts = list(_trained_parts(model))
    sums = [_sum_of(part) for _, part in parts]
    by_device: dict[torch.device, list[Tensor]] = {}
    for found in sums:
        by_device.setdefault(found.device, []).append(found)
    # One transfer a device: the host waits once, not once a tensor.
    read = {device: iter(torch.stack(found).tolist()) for device, found in by_device.items()}
    return {name: next(read[found.device]) for (name, _), found in zip(parts, sums, strict=True)}


def _trained_parts(model: Any) -> Iterator[tuple[str, Tensor]]:
    parameters: Iterable[tuple[str, Any]] = model.named_parameters()
    for name, weight in parameters:
        if weight.requires_grad:
            part = getattr(
                weight, "ds_tensor", weight
            )  # DeepSpeed keeps a rank's part beside an empty tensor
            yield name, (part.to_local() if hasattr(part, "to_local") else part).detach()


def _sum_of(part: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.int64, device=part.device)
    if part.numel():
        for chunk in torch.split(part.flatten().view(_BITS[part.element_size()]), _CHUNK_NUMBERS):
            total += chunk.sum(dtype=torch.int64)
    return total
