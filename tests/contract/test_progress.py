"""A progress line survives the way through a log, is told from other lines, and reads well."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sft.contract.progress import (
    decode_progress,
    describe_duration,
    describe_progress,
    encode_progress,
)

PROGRESS = {"event": "progress", "attempt": 1, "step": 120, "max_steps": 400, "epoch": 0.3}


def test_encode_progress_then_decode_progress_is_the_identity():
    progress = {**PROGRESS, "loss": 1.25, "learning_rate": 5e-5, "eta_s": 250.0}
    line = encode_progress(progress)
    assert "\n" not in line
    assert decode_progress(line) == progress


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Loading the model",
        '{"event":"progress"',
        '{"event":"progress"}',
        '{"event":"progress","step":1}',
        '["event":"progress"]',
        '{"event":"done","step":1,"max_steps":2}',
        '{"a":' * 10_000 + '"event":"progress"',
    ],
)
def test_decode_progress_any_other_line_is_none(line):
    assert decode_progress(line) is None


@given(st.text())
def test_decode_progress_never_raises(line):
    assert decode_progress(line) is None


def test_describe_progress_says_step_loss_speed_and_what_is_left():
    progress = {**PROGRESS, "loss": 1.2345, "learning_rate": 5e-5, "tokens_per_s": 812.4, "eta_s": 250}
    assert (
        describe_progress(progress)
        == "step 120/400 (30%)  loss 1.234  lr 5e-05  812 tokens/s, 4 min 10 s left"
    )


def test_describe_progress_says_only_what_is_known():
    assert describe_progress(PROGRESS) == "step 120/400 (30%)"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (250, "4 min 10 s"),
        (3599, "59 min 59 s"),
        (11_100, "3 h 05 min"),
    ],
)
def test_describe_duration_reads_as_people_say_it(seconds, text):
    assert describe_duration(seconds) == text
