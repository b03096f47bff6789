"""Python values and JSON: what JSON cannot hold, and objects that come as JSON text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

_MAX_DEPTH = 50


def describe_not_json(value: Any) -> str | None:
    """` is NaN. Give a finite number.`; None for what JSON can hold."""
    return next(_flaws(value, 0), None)


def read_object_text(value: Any) -> Any:
    """The object that a JSON text holds; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return parsed if isinstance(parsed, dict) else value


def _flaws(value: Any, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        yield "is nested too deeply. Give a flat value."
    elif isinstance(value, Mapping):
        for key, member in value.items():
            if not isinstance(key, str):
                yield f"has a key of type {type(key).__name__}. Put it in quotes."
            yield from _flaws(member, depth + 1)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _flaws(member, depth + 1)
    else:
        yield from _scalar_flaws(value)


def _scalar_flaws(value: Any) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"is {'NaN' if math.isnan(value) else 'infinite'}. Give a finite number."
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            yield "holds half of a surrogate pair, which is no character. Write the whole character."
    elif value is not None and not isinstance(value, bool | int | float):
        yield f"is of type {type(value).__name__}, which JSON cannot hold. Give text, a number, true, false or a list."
