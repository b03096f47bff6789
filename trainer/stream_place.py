"""Where a run stands in a stream: it goes into each checkpoint, so that going on reads nothing that was trained on.

The place travels with each batch, because batches are read ahead: a step's place is that of its last batch. There is
none where worker processes or another rank read the stream, nor where a shuffle buffer holds rows.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import transformers.trainer
from datasets import IterableDataset

from trainer.data.stream import is_shuffled, starts_anywhere
from trainer.files import read_json, write_json

PLACE_FILE = "sft_stream.json"
_KEY = "stream_place"


class StreamPlace:
    def __init__(self, rows: Any, *, world_size: int, num_workers: int) -> None:
        is_stream = isinstance(rows, IterableDataset)
        self._rows = (
            rows if is_stream and world_size == 1 and not num_workers and not is_shuffled(rows) else None
        )
        self._last: str | None = None

    def collate(self, collator: Callable[[list[Any]], dict[str, Any]], rows: list[Any]) -> dict[str, Any]:
        """The batch of `rows`, with the place behind them."""
        batch = collator(rows)
        if self._rows is not None:
            batch[_KEY] = json.dumps(self._rows.state_dict(), default=int)
        return batch

    def take(self, batch: dict[str, Any], *, trains: bool) -> None:
        """Take the place out of `batch`, which is trained on now, or evaluated."""
        place = batch.pop(_KEY, None)
        if trains and place:
            self._last = place

    def save(self, checkpoint: Path) -> None:
        if self._last:
            write_json(checkpoint / PLACE_FILE, json.loads(self._last))

    def load(self, checkpoint: Path) -> bool:
        """Whether the next pass over the rows begins where `checkpoint` stood."""
        place = read_json(checkpoint / PLACE_FILE)
        if self._rows is None or place is None:
            return False
        self._rows.load_state_dict(place)
        return True

    def is_skipped_to(self, checkpoint: Path) -> bool:
        """A run that goes on from `checkpoint` reads nothing of the stream that lies behind."""
        return self._rows is not None and (checkpoint / PLACE_FILE).exists() and starts_anywhere(self._rows)


@contextlib.contextmanager
def nothing_to_skip() -> Iterator[None]:
    """Keep transformers from skipping the first batches of rows that begin behind them already."""
    skip = transformers.trainer.skip_first_batches
    transformers.trainer.skip_first_batches = lambda loader, _num_batches: loader
    try:
        yield
    finally:
        transformers.trainer.skip_first_batches = skip
