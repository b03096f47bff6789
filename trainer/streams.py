"""Stdout and stderr: their reader may go, and only our own lines start a line. Stdlib only.

Our own are the log's and the run's progress. What libraries print may quote rows, answers and file names: each of
their lines begins with a margin, so that nobody takes it for a line of the log or of progress.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import TextIO

from airflow_provider_sft.contract.names import LOG_LEVEL_ENV_VAR
from airflow_provider_sft.contract.plain_text import MARGIN, plain_lines, plain_text

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_own: dict[int, TextIO] = {}


class _Outlasting(io.FileIO):
    def write(self, data: object) -> int:
        """What nobody reads any more, or has no place, counts as written."""
        try:
            return super().write(data) or 0  # type: ignore[arg-type]
        except OSError:  # EPIPE, but also ENOSPC and EIO: no line of a log is worth a run
            return len(memoryview(data))  # type: ignore[arg-type]


class _Foreign(io.TextIOWrapper):
    """What others print."""

    _at_line_start = True

    def write(self, text: str) -> int:
        lines = plain_text(text).split("\n")
        shown = [f"{MARGIN}{line}" if line else "" for line in lines]
        if not self._at_line_start:
            shown[0] = lines[0]
        self._at_line_start = not lines[-1] and (len(lines) > 1 or self._at_line_start)
        super().write("\n".join(shown))
        return len(text)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """A record is one line; what its message or its traceback has beyond that begins with a margin."""
        return plain_lines(super().format(record))


def outlast_readers() -> None:
    """From here on this process goes on when the one that read its output is gone: a worker that was killed outright.

    Else the next line of progress would end it, before it has saved.
    """
    _open_closed_ones()
    for descriptor in (1, 2):
        os.set_blocking(descriptor, True)
        _own[descriptor] = _open(io.TextIOWrapper, descriptor)
    sys.stdout, sys.stderr = _open(_Foreign, 1), _open(_Foreign, 2)


def _open_closed_ones() -> None:
    """A file that is opened later would get a standard stream's number, and what is printed would go into it."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.dup2(opened, descriptor)
            if opened != descriptor:
                os.close(opened)


def log_to_stderr(level: str, form: str = _FORMAT) -> None:
    """Every logger's records, a line each.

    :param level: one that logging does not have is INFO, and said
    """
    handler = logging.StreamHandler(_own.get(2, sys.stderr))
    handler.setFormatter(_PlainFormatter(form))
    levels = logging.getLevelNamesMapping()
    known = levels.get(level.strip().upper() or "INFO")
    logging.basicConfig(level=logging.INFO if known is None else known, handlers=[handler])
    if known is None:
        logging.getLogger("trainer").warning(
            "%s is %r, which is not a level, so INFO is used. Set it to one of %s.",
            LOG_LEVEL_ENV_VAR, level, ", ".join(levels),
        )  # fmt: skip


def print_line(line: str) -> None:
    """A line of the contract on stdout, as it is."""
    stream = _own.get(1, sys.stdout)
    stream.write(f"{line}\n")
    stream.flush()


def _open(kind: type[io.TextIOWrapper], descriptor: int) -> io.TextIOWrapper:
    raw = _Outlasting(descriptor, "w", closefd=False)
    return kind(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
