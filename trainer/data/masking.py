"""Which tokens are trained, by where their text stands: one tokenisation a row, whatever the tokenizer.

A token is trained when any of its characters lies in a trained span.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

# Characters [start, end) of a row's text. `TO_END` takes what the tokenizer adds after the text with it.
Span = tuple[int, int]
TO_END = sys.maxsize
NOT_TRAINED = -100

# From so many spans on, all offsets are taken at once instead of asking for one position at a time.
_FEW_SPANS = 4


def trained_ranges(encoding: Any, spans: Sequence[Span]) -> list[Span]:
    """The token ranges [first, last) of `spans`, which are in order and do not overlap.

    :param encoding: a `tokenizers.Encoding`
    """
    if len(spans) == 1 and spans[0][1] == TO_END:
        start = encoding.char_to_token(spans[0][0])
        if start is not None:
            return [(start, len(encoding))]
    return _ranges_by_offsets(encoding.offsets, spans)


def _ranges_by_offsets(offsets: list[Span], spans: Iterable[Span]) -> list[Span]:
    """One pass over the tokens. A token without characters belongs to what stands around it.

    Special tokens of the tokenizer's own have the offsets (0, 0); a byte-level space may have (7, 7).
    """
    ranges, token, count = [], 0, len(offsets)
    for start, end in spans:
        while token < count and not _reaches(offsets[token], start):
            token += 1
        first = token
        while token < count and (end == TO_END or offsets[token][0] < end):
            token += 1
        while end != TO_END and token > first and offsets[token - 1] == (0, 0):
            token -= 1
        if token > first:
            ranges.append((first, token))
    return ranges


def _reaches(offset: Span, start: int) -> bool:
    """Whether a token at `offset` holds a character at or after `start`, or is an empty one that stands there."""
    return offset[1] > start or (offset[0] == offset[1] > start) or (offset[0] == offset[1] == start > 0)
