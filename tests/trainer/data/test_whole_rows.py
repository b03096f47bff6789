"""Templates over the whole row, as fms-hf-tuning has them, and templates that render nothing."""

from __future__ import annotations

import pytest

from airflow_provider_sft.contract.errors import DataError
from tests.trainer.data.kinds import CHATML, byte_level_bpe
from tests.trainer.data.preparing import prepare, trained_texts
from tests.trainer.data.test_handlers import handler, run

CHAT = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "one"}]
ROW_STYLE = CHATML.replace("in messages %}", "in messages['messages'] %}")
ATTRIBUTE_STYLE = CHATML.replace("in messages %}", "in messages.messages %}")
ALIAS_STYLE = "{% set turns = messages %}" + CHATML.replace("in messages %}", "in turns['messages'] %}")
RENDER = handler("apply_tokenizer_chat_template", formatted_text_column_name="t")
MASK = handler("tokenize_and_apply_chat_template_with_masking", max_seq_length=99)


def tokenizer_with(template):
    tokenizer = byte_level_bpe()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("template", [CHATML, ROW_STYLE, ATTRIBUTE_STYLE, ALIAS_STYLE])
@pytest.mark.parametrize("columns", [{}, {"id": 7}])
def test_chat_template_that_indexes_the_row_writes_and_trains_what_the_list_style_does(
    tmp_path, template, columns
):
    tokenizer, rows = tokenizer_with(template), [{"messages": CHAT, **columns}]
    keys = {"dataset_text_field": "t", "response_template": "<|im_start|>assistant\n"}
    rendered = run(tmp_path, tokenizer, [RENDER], rows, **keys)
    assert trained_texts(rendered, tokenizer)[0].startswith("one<|im_end|>")
    assert trained_texts(run(tmp_path, tokenizer, [MASK], rows), tokenizer) == ["one<|im_end|>"]
    assert trained_texts(prepare(tmp_path, tokenizer, rows), tokenizer) == ["one<|im_end|>"]


def test_chat_template_over_a_row_without_messages_reads_its_columns(tmp_path):
    tokenizer = tokenizer_with("Q: {{ messages['q'] }} A:{{ messages.get('a') }}")
    rendered = run(
        tmp_path,
        tokenizer,
        [RENDER],
        [{"q": "why?", "a": "so"}],
        dataset_text_field="t",
        response_template="A:",
    )
    assert trained_texts(rendered, tokenizer) == ["so</s>"]


@pytest.mark.parametrize(
    "template", ["{% for m in messages['talk'] %}{{ m.content }}{% endfor %}", " \n", "<s>"]
)
@pytest.mark.parametrize("handlers", [[RENDER], [MASK], None])
def test_chat_template_that_renders_nothing_of_a_row_ends_65_with_its_line(tmp_path, template, handlers):
    tokenizer, rows = tokenizer_with(template), [{"messages": CHAT}] * 2
    with pytest.raises(DataError, match=r"rows.jsonl line 1: the chat template renders nothing of the row"):
        if handlers is None:
            prepare(tmp_path, tokenizer, rows)
        else:
            run(tmp_path, tokenizer, handlers, rows, dataset_text_field="t")


def test_row_for_which_a_formatter_renders_nothing_ends_65_with_its_line(tmp_path, bpe):
    rows = [{"q": "why?"}, {"q": " "}]
    with pytest.raises(DataError, match=r"rows.jsonl line 2: data_formatter_template renders nothing"):
        prepare(tmp_path, bpe, rows, data_formatter_template="{{q}}")


@pytest.mark.parametrize(
    ("rows", "keys"),
    [
        ([{"text": "hello"}, {"text": ""}, {"text": " \n"}], {}),
        ([{"input": "a", "output": "b"}, {"input": "", "output": ""}, {"input": " ", "output": ""}], {}),
    ],
)
def test_empty_row_is_left_out_and_its_end_is_never_trained(tmp_path, bpe, rows, keys):
    prepared = prepare(tmp_path, bpe, rows, **keys)
    assert len(prepared.train) == 1
    (dropped,) = prepared.statistics["dropped"]
    assert (dropped["reason"], dropped["count"]) == ("their text is empty", 2)
    assert dropped["first"][0].endswith("rows.jsonl line 2")


def test_data_of_empty_rows_only_ends_65(tmp_path, bpe):
    with pytest.raises(DataError, match="none of 2 rows has a token to train, because their text is empty"):
        prepare(tmp_path, bpe, [{"text": ""}, {"text": ""}])
