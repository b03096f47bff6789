"""Rows that are left out or have no answer: how many for which reason, and where the first of them stand."""

from __future__ import annotations

from typing import TypedDict

_NAMED_ROWS = 10
_NO_ANSWER = "only the end of sequence is trained of them"


class DroppedRows(TypedDict):
    """Rows left out for one reason, the first of them by file and line."""

    reason: str
    count: int
    first: list[str]


class DropLog:
    """Counts the rows that are left out, by reason, and keeps the place of the first."""

    def __init__(self) -> None:
        self.found: dict[str, DroppedRows] = {}
        self.unanswered: dict[str, DroppedRows] = {}

    def add(self, reason: str, where: str) -> None:
        _count(self.found, reason, where)

    def add_unanswered(self, where: str) -> None:
        """A row that is trained, on nothing but its end."""
        _count(self.unanswered, _NO_ANSWER, where)

    @property
    def count(self) -> int:
        return sum(entry["count"] for entry in self.found.values())


def _count(found: dict[str, DroppedRows], reason: str, where: str) -> None:
    entry = found.setdefault(reason, {"reason": reason, "count": 0, "first": []})
    entry["count"] += 1
    if len(entry["first"]) < _NAMED_ROWS:
        entry["first"].append(where)
