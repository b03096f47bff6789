"""Rows that hold conversations: the column, its older spellings, and what is trained of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_sft.contract.errors import DataError
from trainer.data.chat import ChatTemplate, TemplateFailedError, says_nothing
from trainer.data.keys import DataKeys
from trainer.data.masking import TO_END, Span
from trainer.data.row_format import Example, RowFormat, describe_value
from trainer.data.rows import RowChunk

# Looked for in this order when no key names a column.
_CONVERSATION_COLUMNS = ("messages", "conversations", "conversation", "chat", "turns")
_OLDER_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "observation": "tool",
}
_NOT_SWITCHES = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversations",
        "documents",
        "messages",
        "return_assistant_tokens_mask",
        "row",
        "tools",
    }
)
_MESSAGE_EXAMPLE = '{"role": "user", "content": "..."}'


@dataclass(frozen=True)
class ChatRows:
    """Conversations, trained on the assistant's turns alone.

    :param whole: train every turn
    """

    template: ChatTemplate
    column: str
    whole: bool = False
    special_tokens: bool = False
    unlabelled: str = "no turn of an assistant can be told in them"

    @property
    def description(self) -> str:
        return (
            f"conversations in {self.column!r}, trained {'whole' if self.whole else 'on the assistant turns'}"
        )

    def render(self, chunk: RowChunk) -> list[Example]:
        return [self._example(chunk, index) for index in range(len(chunk.rows))]

    def _example(self, chunk: RowChunk, index: int) -> Example:
        messages, extras = read_messages(chunk, index, self.column), _extras(chunk, index)
        extras["row"] = chunk.rows[index]
        spans: list[Span] | None = [(0, TO_END)]
        try:
            if self.whole:
                text = self.template.render(messages, **extras)
            else:
                text, spans = self.template.render_turns(messages, **extras)
        except TemplateFailedError as error:
            raise _refused(chunk, index, self.column, error) from error
        if says_nothing(text, messages):
            raise nothing_rendered(chunk, index)
        if self.whole:
            return text, spans
        return text, _drop_unweighted(spans or [], messages, chunk.where(index)) or None


@dataclass(frozen=True)
class ChatPairRows:
    """A conversation in two columns: what was said, and the answer, which is trained."""

    template: ChatTemplate
    prompt: str
    answer: str
    whole: bool = False
    special_tokens: bool = False
    unlabelled: str = "there is no answer in them"

    @property
    def description(self) -> str:
        return f"conversations in {self.prompt!r} ({'trained too' if self.whole else 'masked'}) and {self.answer!r}"

    def render(self, chunk: RowChunk) -> list[Example]:
        return [self._example(chunk, index) for index in range(len(chunk.rows))]

    def _example(self, chunk: RowChunk, index: int) -> Example:
        said, answer = (read_messages(chunk, index, column) for column in (self.prompt, self.answer))
        try:
            text, start = self.template.render_answer(said, answer, **_extras(chunk, index))
        except TemplateFailedError as error:
            raise _refused(chunk, index, self.answer, error) from error
        if says_nothing(text, answer):
            raise nothing_rendered(chunk, index)
        return text, [(0 if self.whole else start, TO_END)]


@dataclass(frozen=True)
class MarkedChatRows:
    """Chats as text, trained between each response_template and the next instruction_template."""

    source: RowFormat
    instruction_template: str
    response_template: str
    eos: str

    @property
    def description(self) -> str:
        rows = self.source.description.split(", trained")[0]
        return f"{rows}, trained between {self.response_template!r} and {self.instruction_template!r}"

    @property
    def special_tokens(self) -> bool:
        return self.source.special_tokens

    @property
    def unlabelled(self) -> str:
        return f"response_template {self.response_template!r} does not occur in them"

    def render(self, chunk: RowChunk) -> list[Example]:
        return [self._example(text) for text, _ in self.source.render(chunk)]

    def _example(self, text: str) -> Example:
        spans, position = list[Span](), text.find(self.response_template)
        while position >= 0:
            start = position + len(self.response_template)
            end = text.find(self.instruction_template, start)
            spans.append((start, end if end >= 0 else TO_END))
            position = text.find(self.response_template, end) if end >= 0 else -1
        last = text[spans[-1][0] :] if spans else ""
        return text if self.eos and self.eos in last else text + self.eos, spans or None


def find_misshaped_conversation(sample: Mapping[str, Any]) -> str | None:
    """A column that should hold conversations by its name, and does not."""
    return next((column for column in _CONVERSATION_COLUMNS if column in sample), None)


def find_conversation(sample: Mapping[str, Any], keys: DataKeys) -> str | None:
    """The column that holds conversations, if one does.

    :raises DataError: dataset_conversation_field names none
    """
    if keys.conversation_field:
        if keys.conversation_field not in sample:
            raise DataError(
                f"dataset_conversation_field is {keys.conversation_field!r}, and the rows have "
                f"{', '.join(map(repr, sample))}. Name one of them."
            )
        return keys.conversation_field
    if keys.formatter_template:
        return None
    # A text field that is named wins over a conversation that is not, unless it only names the rendered text.
    named: Sequence[str] = (keys.text_field,) if keys.text_field else ()
    candidates = named if named and not keys.instruction_template else (*named, *_CONVERSATION_COLUMNS)
    return next((column for column in candidates if is_conversation(sample.get(column))), None)


def is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and not {"role", "from"}.isdisjoint(value[0])
    )


def read_messages(chunk: RowChunk, index: int, column: str) -> list[dict[str, Any]]:
    """The conversation of a row, older spellings (`from`, `value`, `gpt`) turned into `role` and `content`.

    :raises DataError: no conversation
    """
    row = chunk.rows[index]
    value = row.get(column)
    if not isinstance(value, list) or not value:
        what = "missing" if column not in row else "an empty list" if value == [] else describe_value(value)
        raise DataError(
            f"{chunk.where(index)}: {column!r} is {what}. Expected a list such as [{_MESSAGE_EXAMPLE}]."
        )
    return [
        _read_message(message, f"{chunk.where(index)}: {column}[{turn}]")
        for turn, message in enumerate(value)
    ]


def _read_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise DataError(
            f"{where} is {describe_value(message)}. Expected an object such as {_MESSAGE_EXAMPLE}."
        )
    if "role" not in message and "from" in message:
        others = {key: value for key, value in message.items() if key not in ("from", "value")}
        role = _OLDER_ROLES.get(message["from"], message["from"])
        message = {"role": role, "content": message.get("value"), **others}
    if not isinstance(message.get("role"), str):
        raise DataError(f"{where} has no role. Expected user, assistant, system or tool.")
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": "".join(_read_part(part, where) for part in content)}
    if not isinstance(content, str) and (content is not None or message["role"] != "assistant"):
        raise DataError(f"{where}: content is {describe_value(content)}. Expected a string.")
    return message


def _read_part(part: Any, where: str) -> str:
    """The text of a part, as APIs write content: `{"type": "text", "text": "..."}`."""
    text = part.get("text") if isinstance(part, dict) else part
    if not isinstance(text, str):
        raise DataError(f"{where}: content holds {describe_value(part)}. Only text is trained here.")
    return text


def _drop_unweighted(spans: list[Span], messages: Sequence[Mapping[str, Any]], where: str) -> list[Span]:
    """Without the turns of `"weight": 0`, which are read and not trained, as in OpenAI's fine-tuning files."""
    weights = [message.get("weight") for message in messages if message["role"] == "assistant"]
    if 0 not in weights or not spans:
        return spans
    if len(spans) != len(weights):
        raise DataError(
            f"{where}: a turn has weight 0, and the chat template does not tell the {len(weights)} turns apart. "
            "Take the weights out, or use another template."
        )
    return [span for span, weight in zip(spans, weights, strict=True) if weight != 0]


def _extras(chunk: RowChunk, index: int) -> dict[str, Any]:
    """Tools, documents and the template's own switches, which a row may carry."""
    row = chunk.rows[index]
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{chunk.where(index)}: 'tools' is no JSON ({error.msg}). Expected a list of tool schemas."
            ) from error
    switches = row.get("chat_template_kwargs") or {}
    if not isinstance(switches, dict):
        raise DataError(
            f"{chunk.where(index)}: chat_template_kwargs is {describe_value(switches)}. Expected an object."
        )
    if taken := _NOT_SWITCHES & switches.keys():
        raise DataError(
            f"{chunk.where(index)}: chat_template_kwargs has {min(taken)!r}, which is not the template's. Take it out."
        )
    extras = {"tools": tools, "documents": row.get("documents")}
    return {key: value for key, value in extras.items() if value} | switches


def nothing_rendered(chunk: RowChunk, index: int) -> DataError:
    return DataError(
        f"{chunk.where(index)}: the chat template renders nothing of the row. Correct the template: it sees the "
        "conversation as 'messages', and the row's columns as messages['column']."
    )


def _refused(chunk: RowChunk, index: int, column: str, error: Exception) -> DataError:
    return DataError(
        f"{chunk.where(index)}: the chat template refuses {column!r} ({error}). Correct the row, or the template."
    )
