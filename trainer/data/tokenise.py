"""Rows of one data set to token ids and labels, those without a trained token left out and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from airflow_provider_sft.contract.errors import DataError
from trainer.data.dropped import DropLog
from trainer.data.encode import EncodedRows, Encoder
from trainer.data.masking import Span
from trainer.data.pretokenised import read_tokens
from trainer.data.row_format import Example, Pretokenised, RowFormat
from trainer.data.rows import RowChunk

_SAY_EVERY_S = 10.0
# One call of the tokenizer takes at most so many characters: their tokens must fit in memory.
_CALL_CHARS = 1 << 24


@dataclass
class Tokeniser:
    """
    :param vocabulary: number of token ids there are
    :param max_length: where rows are cut, for sentences
    :param longest: rows with more tokens are left out
    :param eos: how a text ends
    """

    encoder: Encoder
    vocabulary: int
    max_length: int
    longest: int | None = None
    eos: str = ""
    dropped: DropLog = field(default_factory=DropLog)

    def tokenise(
        self, chunks: Iterable[RowChunk], row_format: RowFormat | Pretokenised
    ) -> Iterator[tuple[RowChunk, EncodedRows, npt.NDArray[np.bool_]]]:
        """Chunk by chunk: the rows, their tokens, and which of them are kept.

        :raises DataError: a row is wrong
        """
        for chunk, encoded, blank, unanswered in self._encode(chunks, row_format):
            kept = (encoded.trained_counts() > 0) & (encoded.whole_lengths <= (self.longest or np.inf))
            for index in np.flatnonzero(~kept):
                self.dropped.add(self._reason(encoded, int(index), blank), chunk.where(int(index)))
            for row in unanswered:
                if kept[row]:
                    self.dropped.add_unanswered(chunk.where(int(row)))
            yield chunk, encoded, kept

    def _encode(
        self, chunks: Iterable[RowChunk], row_format: RowFormat | Pretokenised
    ) -> Iterator[tuple[RowChunk, EncodedRows, list[str | None], list[int]]]:
        """Each chunk with its tokens, why a row has nothing to train however long it is, and which rows have no answer."""
        if isinstance(row_format, Pretokenised):
            for chunk in chunks:
                tokens = read_tokens(chunk, self.vocabulary, self.max_length)
                yield chunk, tokens, [row_format.unlabelled] * len(chunk.rows), []
            return
        special = row_format.special_tokens
        for chunk, examples, encodings in self._ahead(chunks, row_format):
            encoded = self.encoder.label(encodings, examples, special_tokens=special)
            blank = [_why_blank(row_format, *example) for example in examples]
            yield (
                chunk,
                encoded,
                blank,
                [n for n, example in enumerate(examples) if _is_unanswered(*example, self.eos)],
            )

    def _ahead(
        self, chunks: Iterable[RowChunk], row_format: RowFormat
    ) -> Iterator[tuple[RowChunk, list[Example], list[Any]]]:
        """Read and render the next chunk while the tokenizer works on this one."""
        special = row_format.special_tokens
        waiting: tuple[RowChunk, list[Example], Future[list[Any]]] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as pool:
            for whole in chunks:
                for chunk, examples in _split_by_size(whole, row_format.render(whole)):
                    started = pool.submit(self.encoder.tokenise, examples, special_tokens=special)
                    if waiting is not None:
                        yield _finish(*waiting)
                    waiting = chunk, examples, started
            if waiting is not None:
                yield _finish(*waiting)

    def _reason(self, encoded: EncodedRows, index: int, blank: list[str | None]) -> str:
        length = encoded.whole_lengths[index]
        if self.longest is not None and length > self.longest:
            return f"they have more than {self.longest:,} tokens"
        if why := blank[index]:
            return why
        if length > self.max_length:
            return f"what is trained of them lies beyond {self.max_length:,} tokens"
        return "there is no token in them to predict"


def _why_blank(row_format: RowFormat, text: str, spans: list[Span] | None) -> str | None:
    if spans is not None:
        return None
    return row_format.unlabelled if text.strip() else "their text is empty"


def _is_unanswered(text: str, spans: list[Span] | None, eos: str) -> bool:
    """Whether nothing is trained of a row but its end."""
    return bool(spans) and not any(text[start:end].removesuffix(eos).strip() for start, end in spans or ())


class ProgressTeller:
    """A line for people every few seconds, and a sign of life at every call."""

    def __init__(self, name: str, say: Callable[[str], None], beat: Callable[[], None]) -> None:
        self._name, self._say, self._beat = name, say, beat
        self._started = self._said = time.monotonic()
        self._rows = 0

    def add(self, rows: int) -> None:
        self._beat()
        self._rows += rows
        now = time.monotonic()
        if now - self._said >= _SAY_EVERY_S:
            self._said = now
            rate = self._rows / (now - self._started)
            self._say(f"{self._name}: {self._rows:,} rows prepared, {rate:,.0f} a second.")


def _finish(
    chunk: RowChunk, examples: list[Example], tokens: Future[list[Any]]
) -> tuple[RowChunk, list[Example], list[Any]]:
    try:
        return chunk, examples, tokens.result()
    except TypeError as error:  # the tokenizer's word for a text that is no Unicode
        for index, (text, _) in enumerate(examples):
            if not _is_unicode(text):
                raise DataError(
                    f"{chunk.where(index)}: half of a surrogate pair, such as \\ud83d, stands alone. Write the text anew."
                ) from error
        raise


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split_by_size(chunk: RowChunk, examples: list[Example]) -> Iterator[tuple[RowChunk, list[Example]]]:
    if sum(len(text) for text, _ in examples) <= _CALL_CHARS:
        yield chunk, examples
        return
    start = size = 0
    for end, (text, _) in enumerate(chain(examples, [("", None)])):
        size += len(text)
        if end > start and (size > _CALL_CHARS or end == len(examples)):
            yield chunk.part(start, end), examples[start:end]
            start, size = end, len(text)
