"""A timer for foreign code that runs in Python."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jinja2

MAX_SECONDS = 2.0


class LimitError(jinja2.exceptions.SecurityError):
    """A template takes too long, or makes too much."""


@contextmanager
def limited_time(seconds: float = MAX_SECONDS) -> Iterator[None]:
    """End what runs in Python after `seconds` of this thread's own time, whatever else the machine does.

    :raises LimitError: it took longer
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only; rows are rendered there
        return
    started, end = time.monotonic(), time.thread_time() + seconds

    def ring(_number: int, _frame: Any) -> None:
        if (left := end - time.thread_time()) <= 0:
            raise LimitError(f"it takes longer than {seconds:g} s for one row")
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.01))

    before = signal.signal(signal.SIGALRM, ring)
    left_of_others, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left_of_others:
            signal.setitimer(signal.ITIMER_REAL, max(left_of_others - time.monotonic() + started, 0.01))
