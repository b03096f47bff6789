"""A container's log, read in pieces: each line once, whatever the clocks of node and reader say."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator

_OVERLAP_S = 2


class LogWindow:
    """Reads overlap, and what an earlier one brought is left out.

    The API takes no position, only "the last N seconds" by the node's clock. N is the time since the last read,
    by the reader's clock, and a margin: how the two clocks differ does not matter.
    """

    def __init__(self) -> None:
        self.read_until = (
            ""  # the time of the newest line so far; set by who goes on where another reader stopped
        )
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
        """The new ones among lines `<RFC 3339 time> <text>`, without the time. Only a read that arrived whole."""
        lines = list(stamped_lines)
        if self._read_at_s is None and self.read_until:
            lines = [line for line in lines if _stamp(line) > self.read_until]
        self._read_at_s = self._started_at_s
        self.read_until = max(map(_stamp, lines), default=self.read_until)
        before, self._seen = self._seen, Counter(lines)
        for line in lines:
            if before[line]:
                before[line] -= 1
            else:
                yield line.partition(" ")[2]


def _stamp(line: str) -> str:
    """The kubelet's time: nine digits after the second and in UTC, so that text sorts as time does."""
    return line.partition(" ")[0]
