"""Rows that come with input_ids and labels."""

from __future__ import annotations

import pytest

from airflow_provider_sft.contract.errors import ConfigError, DataError
from tests.trainer.data.preparing import prepare


def test_tokens_are_taken_as_they_are(tmp_path, bpe):
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 8, 7], "attention_mask": [1, 1, 1]}]
    prepared = prepare(tmp_path, bpe, rows)
    assert prepared.train[0]["input_ids"].tolist() == [5, 6, 7]
    assert prepared.train[0]["labels"].tolist() == [-100, 8, 7]


def test_long_row_is_cut_and_counted(tmp_path, bpe):
    prepared = prepare(tmp_path, bpe, [{"input_ids": [5] * 9, "labels": [5] * 9}], max_seq_length=4)
    assert len(prepared.train[0]["labels"]) == 4
    assert prepared.statistics["truncated_rows"] == 1


def test_row_without_a_label_is_left_out_and_named(tmp_path, bpe):
    rows = [{"input_ids": [5, 6], "labels": [-100, -100]}, {"input_ids": [5, 6], "labels": [-100, 6]}]
    prepared = prepare(tmp_path, bpe, rows)
    assert len(prepared.train) == 1
    assert prepared.statistics["dropped"][0]["first"] == [f"{tmp_path}/rows.jsonl line 1"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"input_ids": [1, 2], "labels": [1]},
            "line 1: input_ids has 2 tokens and labels 1. Expected as many",
        ),
        ({"input_ids": "12", "labels": [1]}, "line 1: input_ids is str .12.. Expected a list of token ids"),
        (
            {"input_ids": [[1]], "labels": [1]},
            "line 1: input_ids is list ..1... Expected a list of token ids",
        ),
        (
            {"input_ids": [99999], "labels": [1]},
            "line 1: input_ids holds 99999, and the tokenizer has ids 0 to",
        ),
        ({"input_ids": [-100], "labels": [1]}, "line 1: input_ids holds -100"),
        ({"input_ids": [1], "labels": [None]}, "line 1: labels is list .None.. Expected"),
        ({"input_ids": [1], "labels": [1.5]}, "line 1: labels is list .1.5.. Expected a list of token ids"),
    ],
)
def test_wrong_tokens_are_named_by_line(tmp_path, bpe, row, sentence):
    with pytest.raises(DataError, match=sentence):
        prepare(tmp_path, bpe, [row])


@pytest.mark.parametrize("key", ["response_template", "dataset_text_field", "data_formatter_template"])
def test_key_for_texts_is_refused(tmp_path, bpe, key):
    config = {key: "x"} if key != "response_template" else {key: "x", "dataset_text_field": "x"}
    with pytest.raises(ConfigError, match="is 'x', and the rows have input_ids and labels already"):
        prepare(tmp_path, bpe, [{"input_ids": [1, 2], "labels": [1, 2]}], **config)
