"""The data handlers: what each does, checked arguments, and their order."""

from __future__ import annotations

import json

import pytest

from airflow_provider_sft.contract.errors import ConfigError, DataError
from tests.trainer.data.kinds import KINDS
from tests.trainer.data.preparing import prepare, trained_texts, write_rows
from trainer.data.handler_arguments import _SHAPES

ROWS = [{"q": "two and two", "a": "four", "n": [1, 2]}, {"q": "one and one and one", "a": "three", "n": [1]}]


def handler(name, remove_columns=None, **fn_kwargs):
    arguments = {"fn_kwargs": fn_kwargs, "batched": False}
    return {
        "name": name,
        "arguments": arguments | ({"remove_columns": remove_columns} if remove_columns else {}),
    }


def run(tmp_path, tokenizer, handlers, rows=ROWS, **config):
    path = write_rows(tmp_path / "rows.jsonl", rows)
    data_config = tmp_path / "data.json"
    data_config.write_text(json.dumps({"datasets": [{"data_paths": [str(path)], "data_handlers": handlers}]}))
    return prepare(tmp_path, tokenizer, data_config_path=str(data_config), **config)


MASK = handler("tokenize_and_apply_input_masking", "all", input_column_name="q", output_column_name="a")


def test_input_masking_trains_the_output(tmp_path, bpe):
    assert trained_texts(run(tmp_path, bpe, [MASK]), bpe) == [" four</s>", " three</s>"]


def test_input_masking_without_eos(tmp_path, bpe):
    masking = handler(
        "tokenize_and_apply_input_masking", input_column_name="q", output_column_name="a", add_eos_token=False
    )
    assert trained_texts(run(tmp_path, bpe, [masking]), bpe) == [" four", " three"]


def test_tokenize_trains_the_whole_text_up_to_max_length(tmp_path, bpe):
    tokens = handler("tokenize", text_column_name="q", max_length=5)
    prepared = run(tmp_path, bpe, [tokens])
    assert {len(row["labels"]) for row in prepared.train} == {5}


def test_jinja_template_makes_a_text_column(tmp_path, bpe):
    template = handler(
        "apply_custom_jinja_template",
        "all",
        formatted_text_column_name="t",
        template="{{q}} = {{element.a}}{{eos_token}}",
    )
    prepared = run(tmp_path, bpe, [template], dataset_text_field="t", response_template=" =")
    assert trained_texts(prepared, bpe) == [" four</s>", " three</s>"]


def test_chat_template_makes_a_text_column(tmp_path, bpe):
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    chat = handler("apply_tokenizer_chat_template", formatted_text_column_name="t")
    prepared = run(
        tmp_path, bpe, [chat], rows, dataset_text_field="t", response_template="<|im_start|>assistant\n"
    )
    assert trained_texts(prepared, bpe) == ["a<|im_end|>\n"]


def test_chat_with_masking_trains_the_assistant(tmp_path, bpe):
    rows = [{"talk": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    chat = handler(
        "tokenize_and_apply_chat_template_with_masking", conversation_column="talk", max_seq_length=99
    )
    assert trained_texts(run(tmp_path, bpe, [chat], rows), bpe) == ["a<|im_end|>"]


def test_columns_are_renamed_duplicated_selected_and_removed(tmp_path, bpe):
    handlers = [
        {"name": "rename_columns", "arguments": {"column_mapping": {"q": "input"}}},
        handler("duplicate_columns", existing_column_name="a", new_column_name="output"),
        {"name": "remove_columns", "arguments": {"column_names": ["n"]}},
        {"name": "select_columns", "arguments": {"column_names": ["input", "output"]}},
    ]
    assert trained_texts(run(tmp_path, bpe, handlers), bpe) == [" four</s>", " three</s>"]


def test_long_texts_are_skipped_and_named(tmp_path, bpe):
    skip = handler("skip_samples_with_large_columns", column_name="q", max_allowed_length=15)
    prepared = run(tmp_path, bpe, [skip, MASK])
    assert len(prepared.train) == 1
    assert prepared.statistics["dropped"] == [
        {"reason": "'q' is longer than 15", "count": 1, "first": [f"{tmp_path}/rows.jsonl line 2"]}
    ]


def test_rows_with_many_tokens_are_skipped_after_tokenising(tmp_path, bpe):
    short, long = sorted(len(row["labels"]) for row in run(tmp_path, bpe, [MASK]).train)
    skip = handler("skip_samples_with_large_columns", column_name="input_ids", max_allowed_length=long - 1)
    prepared = run(tmp_path, bpe, [MASK, skip])
    assert [len(row["labels"]) for row in prepared.train] == [short]
    assert prepared.statistics["dropped"][0]["reason"] == f"they have more than {long - 1} tokens"


WRONG = {
    "name": (
        [handler("tokenise")],
        r"data_handlers\[0\] is the unknown handler 'tokenise'. Did you mean 'tokenize'\?",
    ),
    "argument": (
        [handler("tokenize", text_colum="q")],
        r"fn_kwargs has the unknown key 'text_colum'. Did you mean",
    ),
    "missing": ([handler("tokenize")], r"data_handlers\[0\] \(tokenize\) lacks 'text_column_name'. Add it"),
    "column": ([handler("tokenize", text_column_name="Q")], r"text_column_name is 'Q', and the rows lack it"),
    "kind": (
        [handler("skip_samples_with_large_columns", column_name="q", max_allowed_length="9")],
        r"max_allowed_length is '9'. Expected a whole number",
    ),
    "zero": (
        [handler("skip_samples_with_large_columns", column_name="q", max_allowed_length=0)],
        r"max_allowed_length is 0. Expected 1 or more",
    ),
    "columns": (
        [{"name": "remove_columns", "arguments": {"column_names": ["x"]}}],
        r"column_names is 'x', and the rows lack it",
    ),
    "twice": ([MASK, MASK], r"data_handlers\[1\].*comes after the rows are tokenised. Move it up"),
    "taken": (
        [handler("duplicate_columns", existing_column_name="q", new_column_name="a")],
        r"new_column_name is 'a', which the rows have already",
    ),
    "batched": (
        [{"name": "apply_custom_jinja_template", "arguments": {"batched": True, "fn_kwargs": {}}}],
        r"batched is true, and this handler takes a row at a time",
    ),
    "template": (
        [handler("apply_custom_jinja_template", formatted_text_column_name="t", template="{{z}}")],
        r"template names 'z', and the rows have 'q', 'a', 'n'",
    ),
    "tokenizer_kwargs": (
        [handler("tokenize", text_column_name="q", tokenizer_kwargs={"padding": True})],
        r"fn_kwargs.tokenizer_kwargs has the unknown key 'padding'",
    ),
    "vision": ([handler("prepare_multimodal_data_processor")], r"only text is trained here"),
}


PAIR = {"input_column_name": "q", "output_column_name": "a"}
WRITES = {"formatted_text_column_name": "text"}
# Arguments of a handler, and one of them otherwise.
OTHERWISE = [
    ("tokenize", {"text_column_name": "q"}, {"text_column_name": "a"}),
    ("tokenize", {"text_column_name": "q"}, {"max_length": 3}),
    ("tokenize", {"text_column_name": "q", "max_length": 3}, {"truncation": False}),
    ("tokenize", {"text_column_name": "q"}, {"tokenizer_kwargs": {"add_special_tokens": False}}),
    ("tokenize", {"text_column_name": "q"}, {"tokenizer_kwargs": {"max_length": 3, "truncation": True}}),
    ("tokenize_and_apply_input_masking", PAIR, {"input_column_name": "a"}),
    ("tokenize_and_apply_input_masking", PAIR, {"output_column_name": "q"}),
    ("tokenize_and_apply_input_masking", PAIR, {"add_eos_token": False}),
    ("tokenize_and_apply_input_masking", PAIR, {"tokenizer_kwargs": {"add_special_tokens": False}}),
    ("tokenize_and_apply_input_masking", PAIR, {"tokenizer_kwargs": {"max_length": 12}}),
    ("tokenize_and_apply_chat_template_with_masking", {}, {"max_seq_length": 12}),
    ("tokenize_and_apply_chat_template_with_masking", {}, {"conversation_column": "talk"}),
    ("apply_custom_jinja_template", {**WRITES, "template": "{{q}}"}, {"template": "{{a}}"}),
    ("apply_custom_jinja_template", {**WRITES, "template": "{{q}}"}, {"formatted_text_column_name": "t"}),
    ("apply_tokenizer_chat_template", WRITES, {"formatted_text_column_name": "t"}),
    ("apply_tokenizer_chat_template", WRITES, {"conversation_column_name": "talk"}),
    (
        "duplicate_columns",
        {"existing_column_name": "q", "new_column_name": "t"},
        {"existing_column_name": "a"},
    ),
    ("duplicate_columns", {"existing_column_name": "q", "new_column_name": "t"}, {"new_column_name": "z"}),
    ("skip_samples_with_large_columns", {"column_name": "q", "max_allowed_length": 12}, {"column_name": "a"}),
    (
        "skip_samples_with_large_columns",
        {"column_name": "q", "max_allowed_length": 12},
        {"max_allowed_length": 99},
    ),
]


@pytest.fixture(scope="session")
def beginning():
    """A tokenizer that begins each text with a special token."""
    return KINDS["sentencepiece_bpe"]()


def tokens_of(tmp_path, tokenizer, name, fn_kwargs):
    """What comes out of a handler, its columns as text, or the error."""
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so it is"}]
    rows = [{**row, "messages": turns, "talk": [*turns, *turns]} for row in ROWS]
    use = {"duplicate_columns": "t", "skip_samples_with_large_columns": "q"}.get(name)
    ends = [handler("tokenize", text_column_name=use)] if use else []
    config = {"dataset_text_field": "text"} if "formatted_text_column_name" in fn_kwargs else {}
    try:
        prepared = run(tmp_path, tokenizer, [handler(name, **fn_kwargs), *ends], rows, **config)
    except (ConfigError, DataError) as error:
        return str(error)
    return [(row["input_ids"].tolist(), row["labels"].tolist()) for row in prepared.train]


@pytest.mark.parametrize(("name", "fn_kwargs", "change"), OTHERWISE)
def test_argument_of_a_handler_changes_what_comes_out(tmp_path, beginning, name, fn_kwargs, change):
    before = tokens_of(tmp_path, beginning, name, fn_kwargs)
    assert isinstance(before, list)
    assert tokens_of(tmp_path, beginning, name, {**fn_kwargs, **change}) != before


def test_every_argument_that_a_handler_accepts_is_shown_to_change_something():
    accepted = {
        (name, argument)
        for name, shape in _SHAPES.items()
        for argument in (*shape.required, *shape.optional)
        if not shape.plain  # the four of these are in test_columns_are_renamed_duplicated_selected_and_removed
    }
    assert {(name, argument) for name, _, change in OTHERWISE for argument in change} == accepted


def test_tokenizer_kwargs_leave_out_special_tokens_and_cut_as_fms_hf_tuning_does(tmp_path, beginning):
    (whole, *_), (bare, *_), (cut, *_) = (
        tokens_of(
            tmp_path, beginning, "tokenize_and_apply_input_masking", {**PAIR, "tokenizer_kwargs": kwargs}
        )
        for kwargs in ({}, {"add_special_tokens": False}, {"max_length": 14, "truncation": True})
    )
    assert bare[0] == whole[0][1:]
    assert cut == (whole[0][:14], whole[1][:14])


def test_argument_of_another_handler_is_a_notice_and_changes_nothing(tmp_path, bpe):
    """As in fms-hf-tuning's own dataset_with_custom_split.yaml."""
    stray = {**MASK["arguments"]["fn_kwargs"], "formatted_text_column_name": "formatted"}
    prepared = run(tmp_path, bpe, [handler(MASK["name"], "all", **stray)])
    assert trained_texts(prepared, bpe) == [" four</s>", " three</s>"]
    (notice,) = prepared.notices
    assert "data_handlers[0]: 'formatted_text_column_name' has no effect" in notice


@pytest.mark.parametrize("mistake", sorted(WRONG))
def test_wrong_handler_is_named_with_its_place(tmp_path, bpe, mistake):
    handlers, sentence = WRONG[mistake]
    with pytest.raises(ConfigError, match=sentence):
        run(tmp_path, bpe, handlers)


def test_handlers_that_leave_out_every_row_end_the_run(tmp_path, bpe):
    skip = handler("skip_samples_with_large_columns", column_name="q", max_allowed_length=1)
    with pytest.raises(DataError, match=r"none of 2 rows .*'q' is longer than 1: .*line 1"):
        run(tmp_path, bpe, [skip, MASK])


TOKENISE = handler("tokenize", "all", text_column_name="q")
COPY = handler("duplicate_columns", existing_column_name="input_ids", new_column_name="labels")


def test_tokens_copied_to_labels_train_whole_texts_as_fms_hf_tuning_does(tmp_path, bpe):
    skip = handler("skip_samples_with_large_columns", column_name="input_ids", max_allowed_length=500)
    prepared = run(tmp_path, bpe, [TOKENISE, skip, COPY])
    assert [row["labels"].tolist() for row in prepared.train] == [bpe(row["q"])["input_ids"] for row in ROWS]


@pytest.mark.parametrize(
    ("handlers", "keys", "sentence"),
    [
        ([MASK, COPY], {}, "which the handler before has made already. Drop the handler"),
        ([TOKENISE, COPY], {"response_template": "="}, "trains whole texts, and response_template is '='"),
        (
            [TOKENISE, handler("duplicate_columns", existing_column_name="input_ids", new_column_name="x")],
            {},
            "only a copy of 'input_ids' to 'labels' has a meaning. Drop",
        ),
    ],
)
def test_copy_of_tokens_without_a_meaning_is_refused_with_what_to_do(tmp_path, bpe, handlers, keys, sentence):
    with pytest.raises(ConfigError, match=sentence):
        run(tmp_path, bpe, handlers, **keys)
