"""One data set: its files to one Arrow file of token ids and labels, checked row by row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from airflow_provider_sft.contract.errors import DataError
from trainer.data.encode import SCHEMA, EncodedRows, Encoder
from trainer.data.formats import Example, Pretokenised, RowFormat
from trainer.data.pretokenised import read_tokens
from trainer.data.rows import RowChunk
from trainer.data.statistics import DataStatistics, StatisticsBuilder

_SAY_EVERY_S = 10.0
# One call of the tokenizer holds at most so many characters: the tokens of a chunk must fit in memory.
_BATCH_CHARS = 1 << 24


@dataclass
class Tokeniser:
    """Rows to tokens, with what people are told meanwhile.

    :param vocabulary: number of token ids that the model knows
    """

    encoder: Encoder
    decode: Callable[[list[int]], str]
    vocabulary: int
    max_length: int
    say: Callable[[str], None]
    beat: Callable[[], None]
    _said_at: float = field(default_factory=time.monotonic)

    def write(
        self, name: str, chunks: Iterable[RowChunk], row_format: RowFormat | Pretokenised, path: Path
    ) -> DataStatistics:
        """Every row of `chunks` to `path`, those without a trained token left out.

        :raises DataError: a row is wrong, or none is left
        """
        statistics = StatisticsBuilder(self.decode, self.max_length, row_format.description)
        started, rows = time.monotonic(), 0
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
            for chunk, encoded, blank in self.encode(chunks, row_format):
                kept = self._sort_out(chunk, encoded, blank, row_format, statistics)
                batch = encoded.batch()
                writer.write_batch(batch if kept.all() else batch.filter(pa.array(kept)))
                rows += len(kept)
                self._tell(name, rows, started)
        result = statistics.build()
        if not result.rows:
            raise DataError(_nothing_left(name, result))
        return result

    def encode(
        self, chunks: Iterable[RowChunk], row_format: RowFormat | Pretokenised
    ) -> Iterator[tuple[RowChunk, EncodedRows, list[bool]]]:
        """Each chunk with its tokens, and which rows had nothing to train before they were cut."""
        for chunk in chunks:
            if isinstance(row_format, Pretokenised):
                yield chunk, read_tokens(chunk, self.vocabulary, self.max_length), [False] * len(chunk.rows)
                continue
            for part, examples in _split_by_size(chunk, row_format.render(chunk)):
                encoded = self.encoder.encode(examples, special_tokens=row_format.special_tokens)
                yield part, encoded, [spans is None for _, spans in examples]

    def _sort_out(
        self,
        chunk: RowChunk,
        encoded: EncodedRows,
        blank: list[bool],
        row_format: RowFormat | Pretokenised,
        statistics: StatisticsBuilder,
    ) -> Any:
        counts = encoded.trained_counts()
        kept = counts > 0
        statistics.add(encoded, kept, counts)
        for index in np.flatnonzero(~kept):
            statistics.drop(
                self._reason(row_format, encoded, int(index), blank[index]), chunk.where(int(index))
            )
        return kept

    def _reason(
        self, row_format: RowFormat | Pretokenised, encoded: EncodedRows, index: int, blank: bool
    ) -> str:
        if blank and not isinstance(row_format, Pretokenised):
            return row_format.unlabelled
        if encoded.whole_lengths[index] > self.max_length:
            return f"nothing of them is trained within {self.max_length:,} tokens"
        return "nothing of them is trained"

    def _tell(self, name: str, rows: int, started: float) -> None:
        self.beat()
        now = time.monotonic()
        if now - self._said_at >= _SAY_EVERY_S:
            self._said_at = now
            self.say(f"{name}: {rows:,} rows tokenised, {rows / (now - started):,.0f} a second.")


def _split_by_size(chunk: RowChunk, examples: list[Example]) -> Iterator[tuple[RowChunk, list[Example]]]:
    if sum(len(text) for text, _ in examples) <= _BATCH_CHARS:
        yield chunk, examples
        return
    start = size = 0
    for end, (text, _) in enumerate(chain(examples, [("", None)])):
        size += len(text)
        if end > start and (size > _BATCH_CHARS or end == len(examples)):
            yield chunk.part(start, end), examples[start:end]
            start, size = end, len(text)


def _nothing_left(name: str, statistics: DataStatistics) -> str:
    if not statistics.dropped:
        return f"{name} holds no rows. Give at least one."
    most = max(statistics.dropped, key=lambda dropped: dropped.count)
    return (
        f"{name}: none of {statistics.dropped_rows:,} rows has a token to train: {most.reason} "
        f"({', '.join(most.first[:3])}{', …' if most.count > 3 else ''}). Correct the key or the data."  # noqa: PLR2004
    )
