"""SIGTERM, SIGINT and SIGHUP to the parent. Next to no imports: `__main__` installs it before its own."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

_INTERRUPTED = 206  # ExitCode.INTERRUPTED, whose module would be one more to import before the handler stands
# An init system that ends a whole cgroup, and a worker that passes its own end on, tell one end twice.
_ONE_CAUSE_S = 0.25


class Interrupted(BaseException):
    """A signal, where nothing has to be finished. As KeyboardInterrupt, it passes by whoever catches errors."""


class StopRequest:
    """The first signal asks the ranks to save and stop, a second one ends everything at once; older checkpoints stay.

    The same signal again within a quarter of a second is the same request. SIGHUP says that whoever started this
    process is gone: it asks to save as well, and is never the second, so that a worker that dies after it told its
    trainer to stop costs no save.
    """

    def __init__(self) -> None:
        self.count = 0
        self.lock_lost = False
        # While ranks run: what passes a signal on to them, called with how many there were.
        self.on_signal: Callable[[int], None] | None = None
        self._may_raise = False
        self._last: tuple[int, float] = (0, 0.0)

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._receive)

    @staticmethod
    def uninstall() -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    @contextlib.contextmanager
    def ends_at_once(self) -> Iterator[None]:
        """Work that can be left at any moment, and done again: a signal leaves it, one that has come already too.

        :raises Interrupted:
        """
        self._may_raise = True
        try:
            if self.count:
                raise Interrupted
            yield
        finally:
            self._may_raise = False

    def lose_lock(self) -> None:
        """Another run writes to output_dir: whatever runs here ends at once."""
        self.lock_lost = True
        if self.on_signal:
            self.on_signal(2)
        elif self._may_raise:
            _thread.interrupt_main(signal.SIGTERM)  # this is the heartbeat's thread

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._is_same_request(number):
            return
        self._last = (number, time.monotonic())
        self.count += 1
        saves = self.count == 1 and not self._may_raise
        _say(f"Received {signal.Signals(number).name}: {'saving' if saves else 'ending at once'}.")
        if self.on_signal:
            self.on_signal(self.count)
        elif self.count > 1:
            os._exit(_INTERRUPTED)  # no rank runs, and what is on disk is whole at every moment
        elif self._may_raise:
            raise Interrupted

    def _is_same_request(self, number: int) -> bool:
        if number == signal.SIGHUP:
            return self.count > 0
        last, at = self._last
        # Of two signals that wait, Python handles the lower number first: a SIGHUP that came after SIGTERM.
        return last in (number, signal.SIGHUP) and time.monotonic() - at < _ONE_CAUSE_S


def _say(sentence: str) -> None:
    # Not by logging: the signal may have come in the middle of a line that is being written, or of logging's import.
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} WARNING trainer: {sentence}\n"
    with contextlib.suppress(OSError):  # whoever read it may be gone
        os.write(2, line.encode())
