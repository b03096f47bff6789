"""What a data set amounts to, for people: counts, lengths, what was cut or left out, and a few rows as they are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from trainer.data.masking import NOT_TRAINED
from trainer.data.store import RowSizes, measure_rows, read_batches

_NAMED_ROWS = 10
_SAMPLES = 3
_SAMPLE_TOKENS = 400
_SHOWN_CHARS = 600
_QUANTILES = {"p50": 50, "p90": 90, "p99": 99}

# A piece of a row's text, and whether it is trained.
Segment = tuple[str, bool]


class DroppedRows(TypedDict):
    """Rows left out for one reason, the first of them by file and line."""

    reason: str
    count: int
    first: list[str]


class Statistics(TypedDict):
    """Of the rows that are trained or evaluated on.

    `lengths` are in tokens before cutting: min, p50, p90, p99, max. `samples` are rows as segments.
    """

    format: str
    rows: int
    tokens: int
    trained_tokens: int
    trained_token_share: float
    max_length: int
    truncated_rows: int
    dropped_rows: int
    lengths: dict[str, int]
    dropped: list[DroppedRows]
    samples: list[list[Segment]]


class DropLog:
    """Counts the rows that are left out, by reason, and keeps the place of the first."""

    def __init__(self) -> None:
        self.found: dict[str, DroppedRows] = {}

    def add(self, reason: str, where: str) -> None:
        entry = self.found.setdefault(reason, {"reason": reason, "count": 0, "first": []})
        entry["count"] += 1
        if len(entry["first"]) < _NAMED_ROWS:
            entry["first"].append(where)

    @property
    def count(self) -> int:
        return sum(entry["count"] for entry in self.found.values())


def summarise(
    paths: Sequence[Path],
    *,
    formats: Sequence[str],
    dropped: Sequence[DroppedRows],
    max_length: int,
    cuts: bool,
    decode: Callable[[list[int]], str],
) -> Statistics:
    """
    :param paths: prepared rows, at least one in each
    :param formats: what the rows were, for people
    :param cuts: whether rows that are too long were cut
    """
    sizes = measure_rows(paths)
    return describe_sizes(
        sizes,
        formats=formats,
        dropped=dropped,
        max_length=max_length,
        cuts=cuts,
        samples=[mark_segments(ids, labels, decode) for ids, labels in islice(_read_tokens(paths), _SAMPLES)],
    )


def describe_sizes(
    sizes: RowSizes,
    *,
    formats: Sequence[str],
    dropped: Sequence[DroppedRows],
    max_length: int,
    cuts: bool,
    samples: list[list[Segment]],
) -> Statistics:
    tokens, trained = int(sizes.lengths.sum()), int(sizes.trained.sum())
    whole = sizes.whole_lengths
    return {
        "format": "; ".join(dict.fromkeys(formats)),
        "rows": len(sizes.lengths),
        "tokens": tokens,
        "trained_tokens": trained,
        "trained_token_share": round(trained / tokens, 4) if tokens else 0.0,
        "max_length": max_length,
        "truncated_rows": int((whole > max_length).sum()) if cuts else 0,
        "dropped_rows": sum(entry["count"] for entry in dropped),
        "lengths": {
            "min": int(whole.min()),
            **{name: int(np.percentile(whole, share)) for name, share in _QUANTILES.items()},
            "max": int(whole.max()),
        },
        "dropped": list(dropped),
        "samples": samples,
    }


def describe_statistics(name: str, statistics: Mapping[str, Any]) -> Iterator[str]:
    """For the log, a sentence each."""
    share = f"{statistics['trained_token_share']:.1%}"
    yield (
        f"{name}: {statistics['rows']:,} rows, {statistics['tokens']:,} tokens, {share} of them trained; "
        f"{statistics['format']}."
    )
    an_epoch = statistics.get("rows_an_epoch", statistics["rows"])
    if an_epoch != statistics["rows"]:
        yield f"{name}: packing and sampling weights make them {an_epoch:,} rows an epoch."
    lengths = ", ".join(f"{key} {value:,}" for key, value in statistics["lengths"].items())
    yield f"{name}: tokens a row: {lengths}."
    if statistics["truncated_rows"]:
        yield (
            f"{name}: {statistics['truncated_rows']:,} rows were cut to {statistics['max_length']:,} tokens. Raise "
            "max_seq_length to keep them whole."
        )
    for entry in statistics["dropped"]:
        more = ", …" if entry["count"] > len(entry["first"]) else ""
        yield f"{name}: {entry['count']:,} rows left out, {entry['reason']}: {', '.join(entry['first'])}{more}."
    for number, sample in enumerate(statistics["samples"], 1):
        yield f"{name}: sample {number}, trained between ⟦ ⟧: {mark_trained(sample)}"


def mark_trained(sample: Sequence[Segment]) -> str:
    """One row as text, what is trained of it in ⟦ ⟧, cut where it is long."""
    text = "".join(f"⟦{text}⟧" if trained else text for text, trained in sample)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} …"


def mark_segments(
    ids: npt.NDArray[np.int32], labels: npt.NDArray[np.int32], decode: Callable[[list[int]], str]
) -> list[Segment]:
    """A row's first tokens as text, piece by piece."""
    ids, trained = ids[:_SAMPLE_TOKENS], labels[:_SAMPLE_TOKENS] != NOT_TRAINED
    edges = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(ids)]
    return [
        (decode(ids[start:end].tolist()), bool(trained[start]))
        for start, end in pairwise(edges)
        if end > start
    ]


def _read_tokens(paths: Sequence[Path]) -> Iterator[tuple[Any, Any]]:
    for path in paths:
        for batch in read_batches(path):
            ids, labels = batch.column("input_ids"), batch.column("labels")
            for index in range(min(batch.num_rows, _SAMPLES)):
                yield ids[index].values.to_numpy(), labels[index].values.to_numpy()
