"""A container's log, read in pieces: each line once, whatever the clocks of node and reader say."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from airflow_provider_sft.log_stamp import split_stamp

_OVERLAP_S = 2


class LogWindow:
    """Reads overlap, and what an earlier one brought is left out.

    The API takes no position, only "the last N seconds" by the node's clock. N is the time since the last read,
    by the reader's clock, and a margin: how the two clocks differ does not matter.
    """

    def __init__(self) -> None:
        self.read_until = (
            ""  # the time of the newest line so far, in UTC; set by who goes on where another reader stopped
        )
        self._goes_on_after: str | None = None
        self._read_at_s: float | None = None
        self._started_at_s = 0.0
        self._seen: Counter[str] = Counter()

    def begin_read(self) -> int | None:
        """`since_seconds` for the read that starts now; None takes the whole log."""
        self._started_at_s = time.monotonic()
        return (
            None if self._read_at_s is None else math.ceil(self._started_at_s - self._read_at_s) + _OVERLAP_S
        )

    def take(self, stamped_lines: Iterable[str]) -> Iterator[str]:
        """The new ones among lines `<RFC 3339 time> <text>`, without the time, as they come.

        A read that breaks off passes its error on, and the next one brings the rest.
        """
        if self._goes_on_after is None:
            self._goes_on_after = self.read_until
        taken: Counter[str] = Counter()
        try:
            yield from self._new_ones(stamped_lines, taken, after=self._goes_on_after)
        except Exception:
            self._seen |= taken
            raise
        self._read_at_s, self._seen = self._started_at_s, taken

    def _new_ones(self, lines: Iterable[str], taken: Counter[str], *, after: str) -> Iterator[str]:
        for line in lines:
            stamp, text = split_stamp(line)
            if stamp and stamp <= after:
                continue
            self.read_until = max(self.read_until, stamp)
            taken[line] += 1
            if taken[line] > self._seen[line]:
                yield text
