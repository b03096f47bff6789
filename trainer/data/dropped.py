"""Rows that are left out: how many for which reason, and where the first of them stand."""

from __future__ import annotations

from typing import TypedDict

_NAMED_ROWS = 10


class DroppedRows(TypedDict):
    """Rows left out for one reason, the first of them by file and line."""

    reason: str
    count: int
    first: list[str]


class DropLog:
    """Counts the rows that are left out, by reason, and keeps the place of the first."""

    def __init__(self) -> None:
        self.found: dict[str, DroppedRows] = {}

    def add(self, reason: str, where: str) -> None:
        entry = self.found.setdefault(reason, {"reason": reason, "count": 0, "first": []})
        entry["count"] += 1
        if len(entry["first"]) < _NAMED_ROWS:
            entry["first"].append(where)

    @property
    def count(self) -> int:
        return sum(entry["count"] for entry in self.found.values())
