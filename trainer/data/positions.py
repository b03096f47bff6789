"""Which positions of a batch are trained, found on the CPU while the accelerator works on the batch before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trainer.data.masking import NOT_TRAINED

Batch = dict[str, Any]


class LabelPositions:
    """A collator that also says, on the CPU, which positions predict a trained token.

    Adds `token_counts`, a LongTensor [2] of tokens without padding and of trained ones, and `logits_to_keep`, a
    LongTensor [K] of positions p with labels[:, p + 1] trained in any row; at least one, so that a batch without any
    still gives a differentiable zero.
    """

    def __init__(self, collator: Callable[[list[Batch]], Batch]) -> None:
        self._collator = collator

    def __call__(self, rows: list[Batch]) -> Batch:
        batch = self._collator(rows)
        positions = (batch["labels"][:, 1:] != NOT_TRAINED).any(dim=0).nonzero().flatten()
        mask = batch.get("attention_mask", batch["input_ids"].new_ones(batch["input_ids"].shape))
        batch["token_counts"] = torch.stack([mask.sum(), (batch["labels"][:, 1:] != NOT_TRAINED).sum()])
        batch["logits_to_keep"] = positions if positions.numel() else torch.zeros(1, dtype=torch.long)
        return batch
