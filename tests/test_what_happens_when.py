"""The table of faults: every one has its row, and every row is shown by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "what-happens-when.md").read_text(encoding="utf-8")
FOUND = re.findall(r"^\| ([A-Z]\d+) \| (.*)$", PAGE, re.MULTILINE)
ROWS = dict(FOUND)
# The letter of each table, and how many rows it has at least.
FAULTS = {
    "C": 9,
    "K": 13,
    "T": 13,
    "S": 9,
    "P": 6,
    "X": 5,
    "W": 0,
    "R": 0,
    "M": 0,
    "D": 0,
    "E": 0,
    "L": 0,
    "V": 0,
}
SHOWN_BY = re.compile(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)")


def test_every_fault_has_one_row():
    counts = {letter: sum(fault[0] == letter for fault in ROWS) for letter in FAULTS}
    assert list(ROWS) == [
        f"{letter}{number + 1}" for letter, count in counts.items() for number in range(count)
    ]
    assert len(FOUND) == len(ROWS)
    assert all(counts[letter] >= least for letter, least in FAULTS.items())


@pytest.mark.parametrize("fault", sorted(ROWS))
def test_every_row_says_what_is_seen_and_what_shows_it(fault):
    when, seen, shown_by, end = ROWS[fault].split(" |")
    assert all((when, seen))
    assert not end
    assert SHOWN_BY.search(shown_by)


@pytest.mark.parametrize(("name", "path"), sorted(set(SHOWN_BY.findall(PAGE))))
def test_named_test_exists(name, path):
    assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8")


def test_every_link_to_a_test_is_of_the_form_that_is_checked():
    assert len(SHOWN_BY.findall(PAGE)) == PAGE.count("](../tests/")
