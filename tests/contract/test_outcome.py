"""The termination message always fits and always decodes; anything else is told from one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sft.contract.names import MAX_TERMINATION_MESSAGE_BYTES
from airflow_provider_sft.contract.outcome import decode_termination_message, encode_termination_message
from airflow_provider_sft.contract.plain_text import plain_text

TEXT = st.text(max_size=200) | st.integers(0, 5000).map("é".__mul__)
RESULTS = st.fixed_dictionaries(
    {
        "contract_version": st.just(1),
        "status": st.sampled_from(["succeeded", "failed", "interrupted"]),
        "exit_code": st.integers(0, 255),
        "reason": TEXT,
        "advice": TEXT,
    },
    optional={
        "model_path": TEXT,
        "base_model": TEXT,
        "train_loss_last": st.floats(),
        "steps": st.integers(0),
        "files": st.lists(TEXT, max_size=100),
        "notices": st.lists(TEXT, max_size=20),
        "vllm_verdict": st.lists(st.fixed_dictionaries({"releases": TEXT, "reason": TEXT}), max_size=9),
    },
)


def result_of(**fields):
    return {
        "contract_version": 1,
        "status": "failed",
        "exit_code": 64,
        "reason": "why",
        "advice": "do",
        **fields,
    }


@given(RESULTS)
def test_encode_termination_message_any_result_fits_in_ascii_and_decodes(result):
    message = encode_termination_message(result)
    assert message.isascii()
    assert "\n" not in message
    assert len(message) <= MAX_TERMINATION_MESSAGE_BYTES
    decoded = decode_termination_message(message)
    assert decoded is not None
    assert decoded["exit_code"] == result["exit_code"]
    assert plain_text(result["reason"]).startswith(decoded["reason"])


def test_encode_termination_message_short_result_is_whole():
    result = result_of(steps=4, files=["a", "b"])
    assert decode_termination_message(encode_termination_message(result)) == result


def test_encode_termination_message_long_result_loses_files_before_the_reason():
    result = result_of(reason="r" * 900, files=["f" * 90] * 90, model_path="/out")
    decoded = decode_termination_message(encode_termination_message(result))
    assert "files" not in decoded
    assert decoded["reason"] == result["reason"]
    assert decoded["model_path"] == "/out"


def test_encode_termination_message_nan_is_no_entry():
    message = encode_termination_message(result_of(train_loss_last=float("nan")))
    assert "train_loss_last" not in json.loads(message, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    "message",
    [
        None,
        "",
        "OOMKilled",
        '{"contract_version":1,"status":"succ',
        "[1]",
        "{}",
        '{"status": "x"}',
        "[" * 100_000,
        "\x1b[31mred",
    ],
)
def test_decode_termination_message_somebody_elses_text_is_none(message):
    assert decode_termination_message(message) is None


def test_decode_termination_message_cut_ones_fields_have_empty_text():
    decoded = decode_termination_message('{"contract_version":1,"status":"failed","exit_code":201}')
    assert (decoded["reason"], decoded["advice"]) == ("", "")
