"""Stdout and stderr whose reader may go. Stdlib only."""

from __future__ import annotations

import io
import sys


class _Outlasting(io.FileIO):
    def write(self, data: object) -> int:
        """What nobody reads any more counts as written."""
        try:
            return super().write(data) or 0  # type: ignore[arg-type]
        except BrokenPipeError:
            return len(memoryview(data))  # type: ignore[arg-type]


def outlast_readers() -> None:
    """From here on this process goes on when the one that read its output is gone: a worker that was killed outright.

    Else the next line of progress would end it, before it has saved.
    """
    sys.stdout, sys.stderr = _open_outlasting(1), _open_outlasting(2)


def _open_outlasting(descriptor: int) -> io.TextIOWrapper:
    raw = _Outlasting(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )
