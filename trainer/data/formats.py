"""What a row is: the format of a data set, chosen from its columns and the config's keys, in PARITY's order.

pretokenised → conversations → one text (a column, or a template over columns) → pairs. A format turns rows into texts
and says which spans of them are trained; it knows no token ids.
"""

from __future__ import annotations

from typing import Any

from airflow_provider_sft.contract.errors import ConfigError, DataError
from trainer.data.chat import ChatTemplate
from trainer.data.chat_rows import (
    ChatPairRows,
    ChatRows,
    MarkedChatRows,
    find_conversation,
    find_misshaped_conversation,
    is_conversation,
    read_messages,
)
from trainer.data.keys import DataKeys
from trainer.data.row_format import Pretokenised, RowFormat
from trainer.data.rows import RowChunk
from trainer.data.templates import RowTemplate
from trainer.data.text_rows import PairRows, TextRows, read_column

# fms-hf-tuning joins its pairs with a space where neither side has white space; trl does not.
_MAX_UNREAD = 6
_PAIRS = (("input", "output", True), ("prompt", "completion", False))


def choose_format(first: RowChunk, keys: DataKeys, tokenizer: Any, eos: str) -> RowFormat | Pretokenised:
    """The format of rows like the first of `first`.

    :param eos: what is written at the end of a text, "" where the tokenizer ends it
    :raises ConfigError: keys that contradict each other or the rows
    :raises DataError: no format fits
    """
    _refuse_contradictions(keys)
    sample = first.rows[0]
    if {"input_ids", "labels"} <= sample.keys():
        _refuse_text_keys(keys)
        return Pretokenised()
    column = find_conversation(sample, keys)
    if keys.instruction_template and keys.response_template:
        return _marked_chat(sample, column, keys, tokenizer, eos)
    if column is not None:
        return _chat(column, keys, tokenizer)
    if keys.text_field or keys.formatter_template:
        return _text(sample, keys, tokenizer, eos)
    return _by_columns(first, keys, tokenizer, eos)


def _by_columns(first: RowChunk, keys: DataKeys, tokenizer: Any, eos: str) -> RowFormat:
    sample = first.rows[0]
    for prompt, answer, joined_by_space in _PAIRS:
        if {prompt, answer} <= sample.keys():
            return _pairs(sample, prompt, answer, joined_by_space, keys, tokenizer, eos)
    if "text" in sample:
        return _text(sample, keys.with_text_field("text"), tokenizer, eos)
    if column := find_misshaped_conversation(sample):
        read_messages(first, 0, column)
    raise DataError(
        f"No format fits the columns {_list(sample)}. Name the text with dataset_text_field, build it with "
        "data_formatter_template, or give the columns input and output, prompt and completion, or messages."
    )


def _text(sample: dict[str, Any], keys: DataKeys, tokenizer: Any, eos: str) -> TextRows:
    if keys.loss_on_assistant:
        raise ConfigError("assistant_only_loss is true, and the rows are no conversations. Drop it.")
    if keys.loss_on_completion and not keys.response_template:
        raise ConfigError(
            "completion_only_loss is true, and nothing says where the completion starts. Add response_template, or "
            "give the columns prompt and completion."
        )
    trained = f"trained after {keys.response_template!r}" if keys.response_template else "trained whole"
    if keys.formatter_template:
        template = RowTemplate(
            "data_formatter_template", keys.formatter_template, list(sample), tokenizer.special_tokens_map
        )
        described = f"one text a row from data_formatter_template, {trained}"
        return TextRows(template.fill_all, described, keys.response_template, eos)
    field = str(keys.text_field)
    if field not in sample:
        raise DataError(
            f"dataset_text_field is {field!r}, and the rows have {_list(sample)}. Name one of them."
        )
    described = f"one text a row in {field!r}, {trained}"
    return TextRows(read_column(field, "dataset_text_field"), described, keys.response_template, eos)


def _pairs(
    sample: dict[str, Any],
    prompt: str,
    answer: str,
    joined_by_space: bool,
    keys: DataKeys,
    tokenizer: Any,
    eos: str,
) -> RowFormat:
    if keys.response_template:
        raise ConfigError(
            f"response_template is {keys.response_template!r}, and the rows are pairs of {prompt!r} and {answer!r}, "
            "which need none. Drop it, or name the one text with dataset_text_field."
        )
    if is_conversation(sample[prompt]):
        return ChatPairRows(ChatTemplate(tokenizer, prompt), prompt, answer, whole=keys.loss_on_prompt)
    unread = [column for column in sample if column not in (prompt, answer)]
    return PairRows(
        prompt,
        answer,
        eos,
        joined_by_space=joined_by_space,
        whole=keys.loss_on_prompt,
        unread=", ".join(map(repr, unread[:_MAX_UNREAD])),
    )


def _chat(column: str, keys: DataKeys, tokenizer: Any) -> ChatRows:
    if keys.response_template:
        raise ConfigError(
            f"response_template is {keys.response_template!r}, and {column!r} holds conversations, whose assistant "
            "turns are found without it. Drop it, or add instruction_template."
        )
    return ChatRows(ChatTemplate(tokenizer, column), column, whole=keys.loss_on_user)


def _marked_chat(
    sample: dict[str, Any], column: str | None, keys: DataKeys, tokenizer: Any, eos: str
) -> MarkedChatRows:
    source: RowFormat = (
        ChatRows(ChatTemplate(tokenizer, column), column, whole=True)
        if column
        else _text(sample, keys.without_templates(), tokenizer, "")
    )
    return MarkedChatRows(source, str(keys.instruction_template), str(keys.response_template), eos)


def _refuse_contradictions(keys: DataKeys) -> None:
    if keys.text_field and keys.formatter_template:
        raise ConfigError(
            "dataset_text_field and data_formatter_template are both set. Keep one: both say what the text is."
        )
    if keys.instruction_template and not keys.response_template:
        raise ConfigError(
            "instruction_template is set without response_template. Add the text that opens the assistant's turn."
        )


def _refuse_text_keys(keys: DataKeys) -> None:
    for key, value in keys.text_keys().items():
        if value:
            raise ConfigError(
                f"{key} is {value!r}, and the rows have input_ids and labels already. Drop the key, or the columns."
            )


def _list(sample: dict[str, Any]) -> str:
    return ", ".join(map(repr, sample)) or "no column"
