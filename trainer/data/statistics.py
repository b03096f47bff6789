"""What a data set amounts to, for people: counts, lengths, what was cut or left out, and a few rows as they are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from trainer.data.dropped import DroppedRows
from trainer.data.masking import NOT_TRAINED
from trainer.data.store import RowSizes, measure_rows, read_batches

_SAMPLES = 3
_SAMPLE_TOKENS = 400
_QUANTILES = {"p50": 50, "p90": 90, "p99": 99}

# A piece of a row's text, and whether it is trained.
Segment = tuple[str, bool]


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
    unanswered: list[DroppedRows]
    samples: list[list[Segment]]


def summarise(
    paths: Sequence[Path],
    *,
    formats: Sequence[str],
    dropped: Sequence[DroppedRows],
    unanswered: Sequence[DroppedRows],
    max_length: int,
    decode: Callable[[list[int]], str],
) -> Statistics:
    """
    :param paths: prepared rows, at least one in each
    :param formats: what the rows were, for people
    """
    sizes = measure_rows(paths)
    return describe_sizes(
        sizes,
        formats=formats,
        dropped=dropped,
        unanswered=unanswered,
        max_length=max_length,
        samples=[mark_segments(ids, labels, decode) for ids, labels in islice(_read_tokens(paths), _SAMPLES)],
    )


def describe_sizes(
    sizes: RowSizes,
    *,
    formats: Sequence[str],
    dropped: Sequence[DroppedRows],
    unanswered: Sequence[DroppedRows],
    max_length: int,
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
        "truncated_rows": int((sizes.lengths < whole).sum()),
        "dropped_rows": sum(entry["count"] for entry in dropped),
        "lengths": {
            "min": int(whole.min()),
            **{name: int(np.percentile(whole, share)) for name, share in _QUANTILES.items()},
            "max": int(whole.max()),
        },
        "dropped": list(dropped),
        "unanswered": list(unanswered),
        "samples": samples,
    }


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
