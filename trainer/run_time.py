"""A clock that counts only the time in which this process ran. Stdlib only."""

from __future__ import annotations

import time


class RunTime:
    """Seconds that were lived through, tick by tick.

    A container that was frozen, a host that slept, a clock that was set and a process that was stopped add one tick at
    most: whoever is watched had no time either.

    :param longest_tick_s: what one tick may add
    """

    def __init__(self, longest_tick_s: float) -> None:
        self.seconds = 0.0
        self._longest_tick_s = longest_tick_s
        self._last_s = time.monotonic()

    def tick(self) -> float:
        """The seconds so far. Call it at short intervals."""
        now_s = time.monotonic()
        self.seconds += min(now_s - self._last_s, self._longest_tick_s)
        self._last_s = now_s
        return self.seconds
