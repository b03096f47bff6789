"""Texts to token ids and labels, a chunk at a time, in one tokenisation a row, through the tokenizer's Rust batch call."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from airflow_provider_sft.contract.errors import ConfigError
from trainer.data.masking import NOT_TRAINED, TO_END, Span, trained_ranges
from trainer.data.row_format import Example

DEFAULT_MAX_LENGTH = 4096
# `whole_length` is a row's before it was cut.
SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "whole_length": pa.int32(),
    }
)


@dataclass(frozen=True)
class Ending:
    """How a text gets its end-of-sequence token.

    :param text: appended to the text before it is tokenised; "" when the tokenizer adds the token itself
    :param token_id: appended after, where the token cannot be written as text
    """

    text: str
    token_id: int | None = None


def choose_ending(tokenizer: Any) -> Ending:
    """Probe how this tokenizer comes to an end-of-sequence token."""
    if tokenizer.eos_token is None:
        return Ending("")
    backend, eos_id = backend_of(tokenizer), tokenizer.eos_token_id
    if backend.encode("a", add_special_tokens=True).ids[-1:] == [eos_id]:
        return Ending("")
    if backend.encode("a" + tokenizer.eos_token, add_special_tokens=False).ids[-1:] == [eos_id]:
        return Ending(tokenizer.eos_token)
    return Ending("", eos_id)


def choose_max_length(tokenizer: Any, asked: int | None) -> int:
    """The tokenizer's own limit, or what the config asks (4096 when it does not), whichever is less."""
    return int(min(asked or DEFAULT_MAX_LENGTH, tokenizer.model_max_length))


def backend_of(tokenizer: Any) -> Any:
    """The Rust tokenizer.

    :raises ConfigError: there is none, so no offsets
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"The tokenizer {tokenizer.name_or_path!r} ({type(tokenizer).__name__}) has no fast version, so it cannot tell where a "
            "token's text stands. Convert it to tokenizer.json, or use tokenizer_name_or_path to name a fast one."
        )
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(tokenizer.split_special_tokens)
    return backend


@dataclass(frozen=True)
class EncodedRows:
    """Rows as arrays: `ids` and `labels` flat over all rows; `lengths` and `whole_lengths` (before cutting) a row each."""

    ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    whole_lengths: npt.NDArray[np.int64]

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        return np.cumsum(self.lengths) - self.lengths

    def trained_counts(self) -> npt.NDArray[np.int64]:
        """Tokens a row that are predicted from one before: a row's first never is."""
        counted = self.labels != NOT_TRAINED
        counted[self.starts[self.lengths > 0]] = False
        sums = np.concatenate(([0], np.cumsum(counted, dtype=np.int64)))
        return sums[self.starts + self.lengths] - sums[self.starts]

    def batch(self) -> pa.RecordBatch:
        """As `SCHEMA` has it."""
        offsets = pa.array(np.concatenate(([0], np.cumsum(self.lengths))), type=pa.int32())
        columns = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (self.ids, self.labels)]
        whole_lengths = pa.array(self.whole_lengths.astype(np.int32))
        return pa.RecordBatch.from_arrays([*columns, whole_lengths], schema=SCHEMA)


class Encoder:
    """A tokenizer and how long a row may be.

    :param max_length: in tokens; None cuts nothing
    :param keep_end: cut a row that is too long at its start, not at its end
    """

    def __init__(
        self, tokenizer: Any, max_length: int | None, ending: Ending, *, keep_end: bool = False
    ) -> None:
        self._backend = backend_of(tokenizer)
        self._max_length = max_length or sys.maxsize
        self._extra_ids = [] if ending.token_id is None else [ending.token_id]
        self._keep_end = keep_end

    def tokenise(self, examples: Sequence[Example], *, special_tokens: bool) -> list[Any]:
        """The tokenizer's part: Rust, on all cores the container has, and without the interpreter's lock."""
        encodings: list[Any] = self._backend.encode_batch(
            [text for text, _ in examples], add_special_tokens=special_tokens
        )
        return encodings

    def label(
        self, encodings: Sequence[Any], examples: Sequence[Example], *, special_tokens: bool
    ) -> EncodedRows:
        """Token ids and labels of tokenised examples, cut to length."""
        rows = [encoding.ids for encoding in encodings]
        ranges = [
            trained_ranges(encoding, spans) if spans else []
            for encoding, (_, spans) in zip(encodings, examples, strict=True)
        ]
        if self._extra_ids and special_tokens:
            for index, (_, spans) in enumerate(examples):
                rows[index], ranges[index] = self._end(rows[index], ranges[index], spans)
        whole_lengths = _lengths(rows)
        for index in np.flatnonzero(whole_lengths > self._max_length).tolist():
            rows[index], ranges[index] = self._cut(rows[index], ranges[index])
        lengths = _lengths(rows)
        ids = np.fromiter(chain.from_iterable(rows), np.int32, lengths.sum())
        return EncodedRows(
            ids, np.where(_mask(lengths, ranges), ids, np.int32(NOT_TRAINED)), lengths, whole_lengths
        )

    def _end(
        self, ids: list[int], ranges: list[Span], spans: Sequence[Span] | None
    ) -> tuple[list[int], list[Span]]:
        """With the end-of-sequence token, which is trained where the text's end is."""
        ended = ids + self._extra_ids
        if not spans or spans[-1][1] != TO_END:
            return ended, ranges
        start = ranges[-1][0] if ranges and ranges[-1][1] == len(ids) else len(ids)
        return ended, [*(span for span in ranges if span[1] <= start), (start, len(ended))]

    def _cut(self, ids: list[int], ranges: list[Span]) -> tuple[list[int], list[Span]]:
        limit = self._max_length
        cut = len(ids) - limit if self._keep_end else 0
        moved = ((first - cut, last - cut) for first, last in ranges)
        kept = [(max(first, 0), min(last, limit)) for first, last in moved if last > 0 and first < limit]
        return ids[cut : cut + limit], kept


def _lengths(rows: Sequence[list[int]]) -> npt.NDArray[np.int64]:
    return np.fromiter(map(len, rows), np.int64, len(rows))


def _mask(lengths: npt.NDArray[np.int64], ranges: Sequence[list[Span]]) -> npt.NDArray[np.bool_]:
    """What is trained of all rows behind each other."""
    starts = (np.cumsum(lengths) - lengths).tolist()
    edges = np.zeros(int(lengths.sum()) + 1, dtype=np.int8)
    edges[[start + first for start, spans in zip(starts, ranges, strict=True) for first, _ in spans]] += 1
    edges[[start + last for start, spans in zip(starts, ranges, strict=True) for _, last in spans]] -= 1
    return np.cumsum(edges[:-1], dtype=np.int8).astype(np.bool_)
