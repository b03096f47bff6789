"""What a data set amounts to, for people: counts, lengths, what was cut or left out, and three rows as they are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.encode import EncodedRows
from trainer.data.masking import NOT_TRAINED

_NAMED_ROWS = 10
_SAMPLES = 3
_SAMPLE_TOKENS = 400
Segment = tuple[str, bool]

_QUANTILES = {"p50": 50, "p90": 90, "p99": 99}


@dataclass(frozen=True)
class DroppedRows:
    """Rows left out for one reason, the first of them by file and line."""

    reason: str
    count: int
    first: list[str]


@dataclass(frozen=True)
class DataStatistics:
    """:param lengths: min, p50, p90, p99, max of the rows' tokens, before cutting
    :param samples: rows as segments [text, trained]
    """

    rows: int
    tokens: int
    trained_tokens: int
    truncated_rows: int
    max_length: int
    format: str
    lengths: dict[str, int] = field(default_factory=dict)
    dropped: list[DroppedRows] = field(default_factory=list)
    samples: list[list[Segment]] = field(default_factory=list)

    @property
    def trained_token_share(self) -> float:
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    @property
    def dropped_rows(self) -> int:
        return sum(dropped.count for dropped in self.dropped)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "trained_token_share": self.trained_token_share,
            "dropped_rows": self.dropped_rows,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> DataStatistics:
        known = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
        return cls(**known | {"dropped": [DroppedRows(**dropped) for dropped in value.get("dropped", [])]})

    def sentences(self, name: str) -> list[str]:
        """For the log, a line each."""
        lengths = ", ".join(f"{key} {value:,}" for key, value in self.lengths.items())
        lines = [
            f"{name}: {self.rows:,} rows of {self.format}; {self.tokens:,} tokens, {self.trained_token_share:.1%} of them trained.",
            f"{name}: tokens a row: {lengths}.",
        ]
        if self.truncated_rows:
            lines.append(
                f"{name}: {self.truncated_rows:,} rows are longer than {self.max_length:,} tokens and were cut. Raise max_seq_length to keep them whole."
            )
        lines += [
            f"{name}: {dropped.count:,} rows left out because {dropped.reason}: {', '.join(dropped.first)}."
            for dropped in self.dropped
        ]
        return lines + [
            f"{name}: sample {number}: {mark_trained(sample)}"
            for number, sample in enumerate(self.samples, 1)
        ]


def mark_trained(sample: list[Segment]) -> str:
    """One row as text, what is trained of it in ⟦ ⟧."""
    return "".join(f"⟦{text}⟧" if trained else text for text, trained in sample)


class StatisticsBuilder:
    """Adds up chunk by chunk."""

    def __init__(self, decode: Callable[[list[int]], str], max_length: int, description: str) -> None:
        self._decode, self._max_length, self._description = decode, max_length, description
        self._whole_lengths: list[npt.NDArray[np.int64]] = []
        self._rows = self._tokens = self._trained = self._truncated = 0
        self._dropped: dict[str, tuple[int, list[str]]] = {}
        self._samples: list[list[Segment]] = []

    def add(
        self, rows: EncodedRows, kept: npt.NDArray[np.bool_], trained_counts: npt.NDArray[np.int64]
    ) -> None:
        self._rows += int(kept.sum())
        self._tokens += int(rows.lengths[kept].sum())
        self._trained += int(trained_counts[kept].sum())
        self._truncated += int((rows.whole_lengths > self._max_length)[kept].sum())
        self._whole_lengths.append(rows.whole_lengths[kept])
        for index in np.flatnonzero(kept)[: _SAMPLES - len(self._samples)]:
            start, end = rows.starts[index], rows.starts[index] + rows.lengths[index]
            self._samples.append(self._sample(rows.ids[start:end], rows.labels[start:end] != NOT_TRAINED))

    def drop(self, reason: str, where: str) -> None:
        count, first = self._dropped.get(reason, (0, []))
        self._dropped[reason] = (count + 1, first if len(first) == _NAMED_ROWS else [*first, where])

    def build(self) -> DataStatistics:
        lengths = np.concatenate(self._whole_lengths) if self._whole_lengths else np.zeros(0, np.int64)
        return DataStatistics(
            rows=self._rows,
            tokens=self._tokens,
            trained_tokens=self._trained,
            truncated_rows=self._truncated,
            max_length=self._max_length,
            format=self._description,
            lengths=_summarise(lengths),
            dropped=[DroppedRows(reason, count, first) for reason, (count, first) in self._dropped.items()],
            samples=self._samples,
        )

    def _sample(self, ids: npt.NDArray[np.int32], trained: npt.NDArray[np.bool_]) -> list[Segment]:
        ids, trained = ids[:_SAMPLE_TOKENS], trained[:_SAMPLE_TOKENS]
        edges = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(ids)]
        return [
            (self._decode(ids[start:end].tolist()), bool(trained[start]))
            for start, end in zip(edges, edges[1:], strict=False)
            if end > start
        ]


def _summarise(lengths: npt.NDArray[np.int64]) -> dict[str, int]:
    if not len(lengths):
        return {}
    middle = {name: int(np.percentile(lengths, share)) for name, share in _QUANTILES.items()}
    return {"min": int(lengths.min()), **middle, "max": int(lengths.max())}
