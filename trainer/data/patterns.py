"""Patterns such as `/data/**/*.jsonl`: as `glob` has them, but links that lead in circles are followed once."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

_ANY_DEPTH = "**"


def expand_pattern(pattern: str) -> list[str]:
    """The paths that match, without names that start with a dot; none for a text without wildcards."""
    return list(_expand(pattern)) if glob.has_magic(pattern) else []


def fixed_part(pattern: str) -> Path:
    """The directory before the first wildcard."""
    parts = pattern.split("/")
    depth = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path("/".join(parts[:depth]) or ("/" if pattern.startswith("/") else "."))


def _expand(pattern: str) -> Iterator[str]:
    parts = pattern.split("/")
    if _ANY_DEPTH not in parts:
        yield from glob.glob(pattern)  # noqa: PTH207  # the pattern may be absolute
        return
    depth = parts.index(_ANY_DEPTH)
    head, rest = "/".join(parts[:depth]), "/".join(parts[depth + 1 :])
    starts = glob.glob(f"{head}/") if head or depth else [""]  # noqa: PTH207
    for start in starts:
        for directory in _directories(start):
            yield from _expand(f"{glob.escape(directory)}{rest or '*'}")


def _directories(start: str) -> Iterator[str]:
    """`start` and every directory below it, each once, with a slash at the end unless it is the current one."""
    seen: set[tuple[int, int]] = set()
    for directory, below, _ in os.walk(start or ".", followlinks=True):
        status = os.stat(directory)  # noqa: PTH116
        below[:] = sorted(name for name in below if not name.startswith("."))
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inside = os.path.relpath(directory, start or ".")
        yield start if inside == "." else f"{start}{inside}/"
