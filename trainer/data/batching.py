"""Batches for the model: rows behind each other without padding, or padded to the longest.

Both train the same tokens with the same numbers: a row's first token is never predicted, in either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainer.data.masking import NOT_TRAINED

Example = Mapping[str, Any]


@dataclass(frozen=True)
class PaddingFreeCollator:
    """All rows of a batch as one row of documents: [1, tokens], positions restarting at each.

    The attention must not look over a document's start: it is told by `position_ids`, and by `cu_seq_lens_*` for
    kernels that want the boundaries.

    :param multiple: fill the row up to a multiple of so many tokens, with a document of padding
    """

    pad_token_id: int = 0
    multiple: int = 1

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        ids, labels = (_concatenate(examples, column) for column in ("input_ids", "labels"))
        lengths = document_lengths(examples)
        if padding := -len(ids) % self.multiple:
            ids = np.concatenate((ids, np.full(padding, self.pad_token_id)))
            labels = np.concatenate((labels, np.full(padding, NOT_TRAINED)))
            lengths = np.append(lengths, padding)
        ends = np.cumsum(lengths)
        starts = ends - lengths
        labels[starts] = NOT_TRAINED
        positions = np.arange(len(labels)) - np.repeat(starts, lengths)
        boundaries = torch.from_numpy(np.concatenate(([0], ends)).astype(np.int32))
        longest = int(lengths.max())
        return {
            "input_ids": torch.from_numpy(ids)[None],
            "labels": torch.from_numpy(labels)[None],
            "position_ids": torch.from_numpy(positions)[None],
            "cu_seq_lens_q": boundaries,
            "cu_seq_lens_k": boundaries,
            "max_length_q": longest,
            "max_length_k": longest,
        }


@dataclass(frozen=True)
class PaddedCollator:
    """Rows padded on the right to the longest of the batch, rounded up to a multiple."""

    pad_token_id: int = 0
    multiple: int = 1

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        lengths = [len(example["input_ids"]) for example in examples]
        width = -(-max(lengths) // self.multiple) * self.multiple
        ids = np.full((len(examples), width), self.pad_token_id, dtype=np.int64)
        labels = np.full((len(examples), width), NOT_TRAINED, dtype=np.int64)
        for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            ids[row, :length] = example["input_ids"]
            labels[row, :length] = example["labels"]
        labels[:, 0] = NOT_TRAINED
        mask = np.arange(width) < np.array(lengths)[:, None]
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }


def document_lengths(examples: Sequence[Example]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Of every document in the batch: a packed row holds several, its `seq_lengths`."""
    nested = [
        example["seq_lengths"] if "seq_lengths" in example else [len(example["input_ids"])]
        for example in examples
    ]
    return np.array([length for lengths in nested for length in lengths], dtype=np.int64)


def _concatenate(examples: Sequence[Example], column: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.concatenate([np.asarray(example[column], dtype=np.int64) for example in examples])
