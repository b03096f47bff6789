"""Data sets that are read while they are trained on. The order is the files' own, so a resumed run meets it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import datasets
import numpy as np
from datasets.iterable_dataset import BufferShuffledExamplesIterable, ExamplesIterable

from airflow_provider_sft.contract.errors import DataError
from trainer.data.dropped import DropLog
from trainer.data.files import DataSource, LocatedData
from trainer.data.job import PreparationJob
from trainer.data.masking import NOT_TRAINED
from trainer.data.mixing import mix_rows
from trainer.data.plan import DatasetSpec
from trainer.data.rows import RowPlace, can_start_anywhere
from trainer.data.statistics import Statistics, describe_sizes, mark_segments
from trainer.data.store import RowSizes

_LOOKED_AT_ROWS = 1000
_SAMPLES = 3
_BUFFER_ROWS = 1000
_BEGINNING = {"file": 0, "line": 0, "rows": 0, "total": 0}
_FEATURES = datasets.Features(
    {"input_ids": datasets.List(datasets.Value("int32")), "labels": datasets.List(datasets.Value("int32"))}
)


def open_stream(job: PreparationJob, located: LocatedData, role: str) -> Any:
    """The rows of a role as a `datasets.IterableDataset`, or None where there are none."""
    specs = [
        (spec, source)
        for spec, source in zip(located.plan.datasets, located.sources, strict=True)
        if (spec.train if role == "train" else spec.validation) > 0
    ]
    if not specs:
        return None
    parts = [
        datasets.IterableDataset(
            _PlacedRows(_StreamRows(job, spec, source)), info=datasets.DatasetInfo(features=_FEATURES)
        )
        for spec, source in specs
    ]
    weights = [spec.sampling or 0.0 for spec, _ in specs] if role == "train" else []
    rows = mix_rows(parts, weights, located.plan)
    if role == "train" and job.shuffle_seed is not None:
        rows = rows.shuffle(seed=job.shuffle_seed, buffer_size=_BUFFER_ROWS)
    return rows


def look_at_stream(rows: Any, job: PreparationJob, decode: Callable[[list[int]], str]) -> Statistics:
    """Statistics of the first rows: a stream is not read to its end before it is trained on.

    :raises DataError: none of them can be trained on
    """
    first = [(np.array(row["input_ids"]), np.array(row["labels"])) for row in islice(rows, _LOOKED_AT_ROWS)]
    if not first:
        raise DataError(
            "The stream holds no row with a token to train. Correct the config's keys, or the data."
        )
    lengths = np.array([len(ids) for ids, _ in first])
    sources = [source.rows for source in _sources(rows._ex_iterable) if isinstance(source, _PlacedRows)]  # noqa: SLF001
    trained = np.array([int((labels[1:] != NOT_TRAINED).sum()) for _, labels in first])
    return describe_sizes(
        RowSizes(lengths, lengths, trained),
        formats=[f"the first {len(first):,} rows of a stream"],
        dropped=[entry for source in sources for entry in source.dropped.found.values()],
        unanswered=[entry for source in sources for entry in source.dropped.unanswered.values()],
        max_length=job.max_length,
        samples=[mark_segments(ids, labels, decode) for ids, labels in first[:_SAMPLES]],
    )


def is_shuffled(rows: Any) -> bool:
    """A stream of which a buffer holds rows, which are read and not trained on yet."""
    return any(isinstance(source, BufferShuffledExamplesIterable) for source in _sources(rows._ex_iterable))  # noqa: SLF001


def starts_anywhere(rows: Any) -> bool:
    """Its state is a place in files that can be gone to; else going on from it means to read up to it."""
    sources = _sources(rows._ex_iterable)  # noqa: SLF001
    return all(source.rows.can_start_anywhere for source in sources if isinstance(source, _PlacedRows))


def _sources(source: Any) -> Iterator[Any]:
    yield source
    below = getattr(source, "ex_iterables", None) or [getattr(source, "ex_iterable", None)]
    for part in below:
        if part is not None:
            yield from _sources(part)


class _StreamRows:
    """The rows of one data set, from any place on, each with the place it comes from."""

    def __init__(self, job: PreparationJob, spec: DatasetSpec, source: DataSource) -> None:
        self._job, self._spec, self._source = job, spec, source
        self.can_start_anywhere = can_start_anywhere(source)
        self.dropped = DropLog()  # of the newest reading

    def read(self, start: RowPlace | None) -> Iterator[tuple[RowPlace, dict[str, Any]]]:
        pipeline = self._job.open_pipeline(self._spec, self._source, streaming=True, start=start)
        self.dropped = pipeline.tokeniser.dropped
        files = {str(path): number for number, path in enumerate(self._source.files)}
        for chunk, encoded, kept in pipeline.tokeniser.tokenise(pipeline.chunks, pipeline.row_format):
            file, starts = files.get(chunk.path, 0), encoded.starts
            for index in np.flatnonzero(kept).tolist():
                part = slice(starts[index], starts[index] + encoded.lengths[index])
                row = {"input_ids": encoded.ids[part], "labels": encoded.labels[part]}
                yield RowPlace(file, chunk.numbers[index]), row


class _PlacedRows(ExamplesIterable):
    """`datasets`' source of a stream, with a state that says where in the files it is: going on skips nothing there.

    file, line: of the row yielded last; rows: how many of that line; total: of the stream so far
    """

    def __init__(self, rows: _StreamRows) -> None:
        super().__init__(rows.read, {})
        self.rows = rows

    def _init_state_dict(self) -> dict[str, Any]:
        self._state_dict = dict(_BEGINNING)
        return self._state_dict

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        state = self._state_dict or dict(_BEGINNING)
        jumps = self.rows.can_start_anywhere and state["total"] > 0
        start = RowPlace(state["file"], state["line"]) if jumps else None
        ahead = self.rows.read(start)
        for place, row in islice(ahead, state["rows"] if jumps else state["total"], None):
            same_line = (place.file, place.line) == (state["file"], state["line"])
            rows = state["rows"] + 1 if same_line else 1
            state.update(file=place.file, line=place.line, rows=rows, total=state["total"] + 1)
            yield state["total"], row

    def shuffle_data_sources(self, generator: np.random.Generator) -> _PlacedRows:
        return _PlacedRows(self.rows)

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> _PlacedRows:
        return _PlacedRows(self.rows)

    def reshard_data_sources(self) -> _PlacedRows:
        return _PlacedRows(self.rows)
