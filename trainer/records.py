"""The records that a run keeps in output_dir, read by one rule: what is damaged is passed over, whatever it is. Stdlib only."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.files import parse_object, read_record_bytes

# A key and what its value must be; a number is finite, and never a boolean.
Shape = Mapping[str, type | tuple[type, ...]]
NUMBER = (int, float)


def read_record(path: Path, shape: Shape) -> dict[str, Any] | None:
    """The JSON object in `path` when it has every key of `shape`."""
    text = read_record_bytes(path)
    return None if text is None else _parse(text, shape)


def read_lines(path: Path, shape: Shape) -> list[dict[str, Any]]:
    """The JSON objects of `path`, one a line, that have every key of `shape`."""
    lines = (read_record_bytes(path) or b"").splitlines()
    return [entry for line in lines if (entry := _parse(line, shape)) is not None]


def count_damaged_lines(path: Path, shape: Shape) -> int:
    """The last line does not count: a process that was killed leaves half of one."""
    lines = (read_record_bytes(path) or b"").splitlines()
    return sum(_parse(line, shape) is None for line in lines[:-1] if line.strip())


def is_number(value: object) -> bool:
    with contextlib.suppress(OverflowError):  # an integer beyond every float
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return False


def _parse(text: bytes, shape: Shape) -> dict[str, Any] | None:
    found = parse_object(text)
    return (
        found if found is not None and all(_fits(found.get(k), kind) for k, kind in shape.items()) else None
    )


def _fits(value: object, kind: type | tuple[type, ...]) -> bool:
    if kind in (int, NUMBER):
        return isinstance(value, kind) and is_number(value)
    return isinstance(value, kind)
