"""Processes that end with the one that started them, however that one ends. Stdlib only; Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
# As a command of its own: between fork and exec, a process with threads may run next to nothing.
_WRAPPER = """
import ctypes, os, sys
try:
    ctypes.CDLL(None).prctl(1, 9)
except (OSError, AttributeError):
    pass
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def tether(argv: Sequence[str]) -> list[str]:
    """A command that runs `argv`, and is killed when this thread ends. Call it from the main thread."""
    return [sys.executable, "-I", "-S", "-c", _WRAPPER, str(os.getpid()), *argv]


def end_with_starter() -> None:
    """From here on this process is killed when the one that started it has ended: a rank below accelerate's launcher."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
