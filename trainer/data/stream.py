"""Data sets that are read while they are trained on. The order is the files' own, so a resumed run meets it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import datasets
import numpy as np

from airflow_provider_sft.contract.errors import DataError
from trainer.data.files import DataSource, LocatedData
from trainer.data.job import PreparationJob
from trainer.data.masking import NOT_TRAINED
from trainer.data.mixing import mix_rows
from trainer.data.plan import DatasetSpec
from trainer.data.statistics import Statistics, describe_sizes, mark_segments
from trainer.data.store import RowSizes

_LOOKED_AT_ROWS = 1000
_SAMPLES = 3
_BUFFER_ROWS = 1000
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
        datasets.IterableDataset.from_generator(_StreamRows(job, spec, source), features=_FEATURES)
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
    trained = np.array([int((labels[1:] != NOT_TRAINED).sum()) for _, labels in first])
    return describe_sizes(
        RowSizes(lengths, lengths, trained),
        formats=[f"the first {len(first):,} rows of a stream"],
        dropped=[],
        max_length=job.max_length,
        cuts=False,  # not known: what is looked at has been cut
        samples=[mark_segments(ids, labels, decode) for ids, labels in first[:_SAMPLES]],
    )


class _StreamRows:
    """A generator function that `datasets` can name: it digests what it is given."""

    def __init__(self, job: PreparationJob, spec: DatasetSpec, source: DataSource) -> None:
        self._job, self._spec, self._source = job, spec, source

    def __call__(self) -> Iterator[dict[str, Any]]:
        pipeline = self._job.open_pipeline(self._spec, self._source, streaming=True)
        for encoded, kept in pipeline.tokeniser.tokenise(pipeline.chunks, pipeline.row_format):
            starts = encoded.starts
            for index in np.flatnonzero(kept):
                part = slice(starts[index], starts[index] + encoded.lengths[index])
                yield {"input_ids": encoded.ids[part], "labels": encoded.labels[part]}
