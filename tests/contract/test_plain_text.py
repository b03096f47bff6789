"""What others wrote is never a line of ours, and moves no terminal."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sft.contract.plain_text import MARGIN, plain_lines, plain_text, plain_value

FORGED = '{"event":"progress","attempt":99,"step":999999,"max_steps":1000000}'


def test_plain_lines_further_lines_begin_with_a_margin_however_often_it_is_applied():
    text = f"a\n{FORGED}\n\n2026-11-24 08:42:03,622 ERROR trainer: b"
    once = plain_lines(text)
    assert [line.startswith(MARGIN) for line in once.split("\n")] == [False, True, True, True]
    assert plain_lines(once) == once


@pytest.mark.parametrize(
    ("character", "spelled"),
    [
        ("\x1b", "\\x1b"),
        ("\r", "\\r"),
        ("\b", "\\b"),
        ("\x85", "\\x85"),
        ("\u2028", "\\u2028"),
        ("\u202e", "\\u202e"),
    ],
)
def test_plain_text_control_characters_are_spelled(character, spelled):
    assert plain_text(f"a{character}b\tc\n") == f"a{spelled}b\tc\n"


def test_plain_text_all_that_is_written_stays():
    text = "Grüße, 你好, مرحبا, 👩‍👩‍👧 ⟦x⟧ <b>&amp;"
    assert plain_text(text) == text


@given(st.text())
def test_plain_lines_has_one_line_start_and_no_control_character(text):
    first, *others = re.split(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]", plain_lines(text))
    assert all(line.startswith(MARGIN) for line in others)
    assert all(character == "\t" or character.isprintable() or ord(character) > 0x9F for character in first)


def test_plain_value_reaches_every_text():
    assert plain_value({"a": ["\x1b", {"b": "https://T@h"}], "c": 1.5}) == {
        "a": ["\\x1b", {"b": "https://***@h"}],
        "c": 1.5,
    }
