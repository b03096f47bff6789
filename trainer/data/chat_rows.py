"""Rows that hold conversations: the column, its older spellings, and what is trained of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from airflow_provider_sft.contract.errors import DataError
from trainer.data.chat import ChatTemplate, TemplateFailedError
from trainer.data.masking import TO_END, Span
from trainer.data.rows import Row, RowChunk

# Looked for in this order when dataset_conversation_field is not set.
_CONVERSATION_COLUMNS = ("messages", "conversations", "conversation", "chat", "turns")
_OLDER_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "observation": "tool",
}


class _Renders(Protocol):
    description: str
    special_tokens: bool

    def render(self, chunk: RowChunk) -> list[tuple[str, list[Span] | None]]: ...


def conversation_column(columns: Sequence[str], sample: Row, values: Mapping[str, Any]) -> str | None:
    """The column that holds conversations, if one does.

    :raises DataError: dataset_conversation_field names none
    """
    named = values.get("dataset_conversation_field")
    if named:
        if named not in columns:
            raise DataError(
                f"dataset_conversation_field is {named!r}, and the rows have {', '.join(map(repr, columns))}. Name one of them."
            )
        return str(named)
    if values.get("data_formatter_template"):
        return None
    field = values.get("dataset_text_field")
    candidates = _CONVERSATION_COLUMNS if field is None or values.get("instruction_template") else (field,)
    return next((name for name in candidates if _is_conversation(sample.get(name))), None)


@dataclass(frozen=True)
class ChatRows:
    """Conversations, trained on the assistant's turns alone."""

    template: ChatTemplate
    column: str
    special_tokens: bool = False
    unlabelled: str = "no assistant turn can be told in it"

    @property
    def description(self) -> str:
        return f"conversations in {self.column!r}, trained on the assistant's turns"

    def render(self, chunk: RowChunk) -> list[tuple[str, list[Span] | None]]:
        return [self._example(chunk, index) for index in range(len(chunk.rows))]

    def _example(self, chunk: RowChunk, index: int) -> tuple[str, list[Span] | None]:
        row = chunk.rows[index]
        messages = messages_of(chunk, index, self.column)
        try:
            text, spans = self.template.render_turns(messages, **_extras(chunk, index, row))
        except TemplateFailedError as error:
            raise DataError(
                f"{chunk.where(index)}: the chat template refuses {self.column!r} ({error}). Correct the row or the template."
            ) from error
        return text, spans or None


@dataclass(frozen=True)
class MarkedChatRows:
    """Chats as text, trained between each response_template and the next instruction_template."""

    source: _Renders
    instruction_template: str
    response_template: str
    eos: str

    @property
    def description(self) -> str:
        return f"{self.source.description.split(', trained')[0]}, trained between {self.response_template!r} and {self.instruction_template!r}"

    @property
    def special_tokens(self) -> bool:
        return self.source.special_tokens

    @property
    def unlabelled(self) -> str:
        return f"response_template {self.response_template!r} does not occur"

    def render(self, chunk: RowChunk) -> list[tuple[str, list[Span] | None]]:
        return [self._example(text) for text, _ in self.source.render(chunk)]

    def _example(self, text: str) -> tuple[str, list[Span] | None]:
        spans, position = list[Span](), text.find(self.response_template)
        while position >= 0:
            start = position + len(self.response_template)
            end = text.find(self.instruction_template, start)
            spans.append((start, end if end >= 0 else TO_END))
            position = text.find(self.response_template, end) if end >= 0 else -1
        last = text[spans[-1][0] :] if spans else ""
        return text if self.eos in last else text + self.eos, spans or None


def messages_of(chunk: RowChunk, index: int, column: str) -> list[dict[str, Any]]:
    """The conversation of a row, older spellings (`from`, `value`, `gpt`) turned into `role` and `content`.

    :raises DataError: no conversation
    """
    value = chunk.rows[index].get(column)
    if not isinstance(value, list) or not value:
        what = (
            "missing"
            if column not in chunk.rows[index]
            else "empty"
            if value == []
            else f"{type(value).__name__}"
        )
        raise DataError(
            f'{chunk.where(index)}: {column!r} is {what}. Expected a list such as [{{"role": "user", "content": "..."}}, ...].'
        )
    return [_message(chunk, index, column, turn, message) for turn, message in enumerate(value)]


def _message(chunk: RowChunk, index: int, column: str, turn: int, message: Any) -> dict[str, Any]:
    where = f"{chunk.where(index)}: {column}[{turn}]"
    if not isinstance(message, dict):
        raise DataError(
            f'{where} is {type(message).__name__}. Expected an object such as {{"role": "user", "content": "..."}}.'
        )
    if "role" not in message and "from" in message:
        older = {key: value for key, value in message.items() if key not in ("from", "value")}
        message = {
            "role": _OLDER_ROLES.get(message["from"], message["from"]),
            "content": message.get("value"),
            **older,
        }
    if not isinstance(message.get("role"), str):
        raise DataError(f"{where} has no role. Expected user, assistant, system or tool.")
    content = message.get("content")
    if not isinstance(content, str | list) and not (content is None and message["role"] == "assistant"):
        raise DataError(
            f"{where}: content is {'null' if content is None else type(content).__name__}. Expected a string."
        )
    return message


def _extras(chunk: RowChunk, index: int, row: Row) -> dict[str, Any]:
    """Tools, documents and the template's own switches, which a row may carry."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{chunk.where(index)}: 'tools' is no JSON ({error.msg}). Expected a list of tool schemas."
            ) from error
    extras = {"tools": tools, "documents": row.get("documents"), **(row.get("chat_template_kwargs") or {})}
    return {key: value for key, value in extras.items() if value}


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and bool({"role", "from"} & value[0].keys())
    )
