"""Which format is taken, what people are told, and what is written for a later run."""

from __future__ import annotations

import pandas as pd
import pytest

from airflow_provider_sft.contract.errors import ConfigError, DataError
from tests.trainer.data.preparing import decode_trained, prepare, trained_texts, write_rows

MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
EVERYTHING = {
    "messages": MESSAGES,
    "text": "t",
    "input": "i",
    "output": "o",
    "prompt": "p",
    "completion": "c",
}


@pytest.mark.parametrize(
    ("row", "config", "expected"),
    [
        ({"input_ids": [5, 6], "labels": [5, 6], **EVERYTHING}, {}, "pretokenised rows"),
        (EVERYTHING, {}, "conversations in 'messages', trained on the assistant turns"),
        (
            EVERYTHING,
            {"instruction_template": "user\n", "response_template": "assistant\n"},
            "conversations in 'messages', trained between 'assistant\\n' and 'user\\n'",
        ),
        (EVERYTHING, {"dataset_text_field": "output"}, "one text a row in 'output', trained whole"),
        (EVERYTHING, {"dataset_text_field": "messages"}, "conversations in 'messages'"),
        (
            EVERYTHING,
            {"data_formatter_template": "{{input}}: {{output}}", "response_template": ":"},
            "one text a row from data_formatter_template, trained after ':'",
        ),
        ({"input": "i", "output": "o", "text": "t"}, {}, "pairs of 'input' (masked) and 'output'"),
        ({"prompt": "p", "completion": "c", "text": "t"}, {}, "pairs of 'prompt' (masked) and 'completion'"),
        ({"text": "t"}, {}, "one text a row in 'text', trained whole"),
    ],
)
def test_format_is_chosen_in_the_documented_order_and_named_in_the_log(tmp_path, bpe, row, config, expected):
    said = []
    prepared = prepare(tmp_path, bpe, [row], said=said, **config)
    assert prepared.statistics["format"].startswith(expected)
    assert any(expected in sentence for sentence in said)


def test_columns_that_pairs_leave_unread_are_named_in_the_log(tmp_path, bpe):
    said = []
    prepare(tmp_path, bpe, [{"instruction": "add", "input": "1 1", "output": "2"}], said=said)
    assert "pairs of 'input' (masked) and 'output'; not read: 'instruction'." in said[0]


@pytest.mark.parametrize(
    ("row", "config", "sentence"),
    [
        (
            {"input": "i", "output": "o"},
            {"dataset_text_field": "x"},
            "dataset_text_field is 'x', and the rows have",
        ),
        (
            {"a": "b"},
            {"data_formatter_template": "{{c}}"},
            "data_formatter_template names 'c', and the rows have 'a'",
        ),
        (
            {"a": "b"},
            {"data_formatter_template": "{{a"},
            "data_formatter_template is no Jinja template: line 1",
        ),
        (
            {"a": "b"},
            {"dataset_conversation_field": "c"},
            "dataset_conversation_field is 'c', and the rows have 'a'",
        ),
        (
            {"a": "b"},
            {"data_formatter_template": "{{ a.__class__ }}"},
            "data_formatter_template does what the sandbox forbids",
        ),
        (
            {"text": "t"},
            {"assistant_only_loss": True},
            "assistant_only_loss is true, and the rows are no conversations",
        ),
        (
            {"text": "t"},
            {"completion_only_loss": True},
            "completion_only_loss is true, and nothing says where",
        ),
        (
            {"messages": MESSAGES},
            {"dataset_text_field": "messages", "response_template": "x"},
            "response_template is 'x', and 'messages' holds conversations",
        ),
    ],
)
def test_key_that_does_not_fit_the_rows_is_refused(tmp_path, bpe, row, config, sentence):
    with pytest.raises((ConfigError, DataError), match=sentence):
        prepare(tmp_path, bpe, [row], **config)


def test_template_that_a_row_cannot_fill_names_the_line(tmp_path, bpe):
    rows = [{"a": "x", "b": "y"}, {"a": "x"}]
    with pytest.raises(
        DataError, match=r"rows.jsonl line 2: data_formatter_template fails \('b' is undefined\)"
    ):
        prepare(tmp_path, bpe, rows, data_formatter_template="{{a}} {{b}}")


def test_row_without_the_response_template_is_left_out_counted_and_named(tmp_path, bpe):
    rows = [{"t": "q: a"}, {"t": "no answer"}, {"t": "q: b"}]
    said = []
    prepared = prepare(tmp_path, bpe, rows, dataset_text_field="t", response_template=":", said=said)
    assert trained_texts(prepared, bpe) == [" a</s>", " b</s>"]
    assert prepared.statistics["dropped_rows"] == 1
    assert (
        f"1 rows left out, response_template ':' does not occur in them: {tmp_path}/rows.jsonl line 2."
        in said[2]
    )


def test_no_row_with_the_response_template_ends_the_run_with_65(tmp_path, bpe):
    rows = [{"t": "q: a"}] * 5
    with pytest.raises(
        DataError, match=r"none of 5 rows has a token to train.*'###' does not occur.*line 1"
    ) as failure:
        prepare(tmp_path, bpe, rows, dataset_text_field="t", response_template="###")
    assert failure.value.exit_code == 65


def test_rows_whose_answer_is_cut_away_are_counted_apart(tmp_path, bpe):
    rows = [{"prompt": "a" * 50, "completion": "b"}, {"prompt": "a", "completion": " b"}]
    prepared = prepare(tmp_path, bpe, rows, max_seq_length=8)
    assert prepared.statistics["dropped"][0]["reason"] == "what is trained of them lies beyond 8 tokens"


def test_statistics_say_rows_tokens_lengths_and_share(tmp_path, bpe):
    rows = [{"prompt": "a b", "completion": " c"}] * 4
    statistics = prepare(tmp_path, bpe, rows).statistics
    assert (statistics["rows"], statistics["tokens"], statistics["trained_tokens"]) == (4, 16, 8)
    assert statistics["trained_token_share"] == 0.5
    assert statistics["lengths"] == {"min": 4, "p50": 4, "p90": 4, "p99": 4, "max": 4}


def test_three_samples_show_what_is_trained(tmp_path, bpe):
    said = []
    prepared = prepare(tmp_path, bpe, [{"prompt": "q:", "completion": f" {n}"} for n in range(9)], said=said)
    assert prepared.statistics["samples"][0] == [["q:", False], [" 0</s>", True]]
    assert [s for s in said if "sample 1" in s] == ["train: sample 1, trained between ⟦ ⟧: q:⟦ 0</s>⟧"]
    assert len(prepared.statistics["samples"]) == 3


def test_only_rank_zero_tells(tmp_path, bpe):
    said = []
    prepare(tmp_path, bpe, [{"text": "a b"}], said=said, environ={"RANK": "1"})
    assert said == []


def test_max_length_is_the_tokenizers_where_that_is_lower(tmp_path, bpe):
    assert prepare(tmp_path, bpe, [{"text": "a b"}]).statistics["max_length"] == bpe.model_max_length == 1024


def test_validation_rows_come_in_the_same_format(tmp_path, bpe):
    held = write_rows(tmp_path / "held.jsonl", [{"t": "q: x"}])
    config = {"dataset_text_field": "t", "response_template": ":", "validation_data_path": str(held)}
    prepared = prepare(tmp_path, bpe, [{"t": "q: a"}] * 2, **config)
    assert decode_trained(prepared.validation[0], bpe) == " x</s>"
    assert prepared.statistics["validation"]["rows"] == 1


def test_processing_only_writes_shards_that_a_later_run_reads(tmp_path, bpe):
    rows = [{"prompt": "a", "completion": f" {n}"} for n in range(10)]
    held = write_rows(tmp_path / "held.jsonl", rows[:4])
    config = {"do_dataprocessing_only": True, "num_train_dataset_shards": 3, "num_eval_dataset_shards": 2}
    first = prepare(tmp_path, bpe, rows, validation_data_path=str(held), **config)
    names = sorted(path.name for path in (tmp_path / "out/train_dataset").iterdir())
    assert names == ["ds_00000.parquet", "ds_00001.parquet", "ds_00002.parquet"]
    assert len(list((tmp_path / "out/validation_dataset").iterdir())) == 2
    assert list(pd.read_parquet(tmp_path / "out/train_dataset/ds_00000.parquet")) == ["input_ids", "labels"]
    later = prepare(tmp_path, bpe, training_data_path=str(tmp_path / "out/train_dataset"))
    assert trained_texts(later, bpe) == trained_texts(first, bpe)


def test_processing_again_replaces_the_shards(tmp_path, bpe):
    for shards in (4, 1):
        prepare(
            tmp_path, bpe, [{"text": f"a {n}"} for n in range(8)], do_dataprocessing_only=True,
            num_train_dataset_shards=shards,
        )  # fmt: skip
    assert [path.name for path in (tmp_path / "out/train_dataset").iterdir()] == ["ds_00000.parquet"]
