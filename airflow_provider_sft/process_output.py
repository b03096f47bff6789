"""The lines of a process while it runs."""

from __future__ import annotations

import os
import selectors
import subprocess
from collections.abc import Iterator

_TICK_S = 0.2
_CHUNK_BYTES = 65_536


def follow_lines(process: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """Each line of `process.stdout` as it comes, and None whenever nothing came for a moment.

    Ends when the process has ended and its output is read, even where a child of it holds the pipe open.
    """
    pending = b""
    for chunk in _chunks(process):
        if chunk is None:
            yield None
            continue
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
    if pending:
        yield pending.decode(errors="replace")


def _chunks(process: subprocess.Popen[bytes]) -> Iterator[bytes | None]:
    assert process.stdout is not None  # noqa: S101  # started with a pipe
    fd = process.stdout.fileno()
    os.set_blocking(fd, False)
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            ended = process.poll() is not None
            if selector.select(0 if ended else _TICK_S):
                chunk = os.read(fd, _CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk
            elif ended:
                return
            else:
                yield None
