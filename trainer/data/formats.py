"""What a row is: the format of a data set, chosen from its columns and the config, in PARITY's order.

A format turns rows into texts and the spans of them that are trained. It knows no token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from airflow_provider_sft.contract.errors import ConfigError, DataError
from trainer.data.chat import ChatTemplate
from trainer.data.chat_rows import ChatRows, MarkedChatRows, conversation_column
from trainer.data.masking import TO_END, Span
from trainer.data.rows import Row, RowChunk
from trainer.data.templates import RowTemplate

# A text, and what of it is trained; None where nothing can be.
Example = tuple[str, list[Span] | None]


class RowFormat(Protocol):
    """How rows become texts."""

    @property
    def description(self) -> str:
        """For the log."""

    @property
    def special_tokens(self) -> bool:
        """Whether the tokenizer adds its own (BOS) around the text."""

    @property
    def unlabelled(self) -> str:
        """Why a row of this format may have nothing to train."""

    def render(self, chunk: RowChunk) -> list[Example]:
        """A text a row, and what of it is trained.

        :raises DataError: a row is not of this format
        """


@dataclass(frozen=True)
class Pretokenised:
    """`input_ids` and `labels`, taken as they are."""

    description: str = "pretokenised rows (input_ids and labels)"


@dataclass(frozen=True)
class TextRows:
    """One text a row, trained from the end of the last `response_template` on, or whole."""

    text_of: Callable[[RowChunk, int], str]
    description: str
    response_template: str | None
    eos: str
    special_tokens: bool = True

    @property
    def unlabelled(self) -> str:
        return f"response_template {self.response_template!r} does not occur"

    def render(self, chunk: RowChunk) -> list[Example]:
        return [self._example(self.text_of(chunk, index)) for index in range(len(chunk.rows))]

    def _example(self, text: str) -> Example:
        ended = text if self.eos and text.endswith(self.eos) else text + self.eos
        if self.response_template is None:
            return ended, [(0, TO_END)]
        found = text.rfind(self.response_template)
        return ended, [(found + len(self.response_template), TO_END)] if found >= 0 else None


@dataclass(frozen=True)
class PairRows:
    """A prompt column and a column that answers it; the answer is trained.

    :param joined_by_space: put a space between the two where neither has white space there, as fms-hf-tuning does
    """

    prompt: str
    answer: str
    eos: str
    joined_by_space: bool
    special_tokens: bool = True
    unlabelled: str = "there is no answer"

    @property
    def description(self) -> str:
        return f"pairs of {self.prompt!r} (masked) and {self.answer!r}"

    def render(self, chunk: RowChunk) -> list[Example]:
        return [self._example(chunk, index) for index in range(len(chunk.rows))]

    def _example(self, chunk: RowChunk, index: int) -> Example:
        prompt, answer = string_of(chunk, index, self.prompt), string_of(chunk, index, self.answer)
        joint = " " if self.joined_by_space and not (_ends_blank(prompt) or _starts_blank(answer)) else ""
        ending = "" if self.eos and answer.endswith(self.eos) else self.eos
        return f"{prompt}{joint}{answer}{ending}", [(len(prompt), TO_END)]


def choose_format(
    columns: Sequence[str], sample: Row, values: Mapping[str, Any], tokenizer: Any, eos: str
) -> RowFormat | Pretokenised:
    """The format of rows that have `columns`.

    :param sample: the first row
    :param eos: what ends a text, or "" when the tokenizer ends it
    :raises ConfigError: keys that contradict each other or the columns
    :raises DataError: no format fits
    """
    _refuse_contradictions(values)
    if {"input_ids", "labels"} <= set(columns):
        return _pretokenised(values)
    chat = _chat_format(columns, sample, values, tokenizer, eos)
    if chat is not None:
        return chat
    if values.get("data_formatter_template") or values.get("dataset_text_field"):
        return _text_format(columns, values, tokenizer, eos)
    for prompt, answer, spaced in (("input", "output", True), ("prompt", "completion", False)):
        if {prompt, answer} <= set(columns):
            return _pair_format(prompt, answer, spaced, values, eos)
    if "text" in columns:
        return _text_format(columns, {**values, "dataset_text_field": "text"}, tokenizer, eos)
    raise DataError(
        f"No format fits the columns {', '.join(columns)}. Name the text with dataset_text_field, build it with "
        "data_formatter_template, or give the columns input and output, prompt and completion, or messages."
    )


def string_of(chunk: RowChunk, index: int, column: str) -> str:
    """
    :raises DataError: missing, or no string
    """
    value = chunk.rows[index].get(column)
    if type(value) is str:
        return value
    if column not in chunk.rows[index]:
        present = ", ".join(map(repr, chunk.rows[index])) or "nothing"
        raise DataError(f"{chunk.where(index)}: {column!r} is missing. The row has {present}.")
    raise DataError(f"{chunk.where(index)}: {column!r} is {_short(value)}. Expected a string.")


def _refuse_contradictions(values: Mapping[str, Any]) -> None:
    if values.get("dataset_text_field") and values.get("data_formatter_template"):
        raise ConfigError(
            "dataset_text_field and data_formatter_template are both set. Keep one: both say what the text is."
        )
    if values.get("dataset_image_field"):
        raise ConfigError(
            f"dataset_image_field is {values['dataset_image_field']!r}, and this trainer tunes text models alone. Drop it."
        )
    if values.get("instruction_template") and not values.get("response_template"):
        raise ConfigError(
            "instruction_template is set without response_template. Add the text that opens the assistant's turn."
        )


def _pretokenised(values: Mapping[str, Any]) -> Pretokenised:
    for key in (
        "response_template", "instruction_template", "data_formatter_template", "dataset_text_field",
        "dataset_conversation_field",
    ):  # fmt: skip
        if values.get(key):
            raise ConfigError(
                f"{key} is {values[key]!r}, and the data has input_ids and labels already. Drop the key, or the columns."
            )
    return Pretokenised()


def _chat_format(
    columns: Sequence[str], sample: Row, values: Mapping[str, Any], tokenizer: Any, eos: str
) -> RowFormat | None:
    column = conversation_column(columns, sample, values)
    instruction, response = values.get("instruction_template"), values.get("response_template")
    if instruction:
        source = (
            ChatRows(ChatTemplate(tokenizer), column)
            if column
            else _text_format(columns, {**values, "response_template": None}, tokenizer, "")
        )
        return MarkedChatRows(source, instruction, response, eos)
    if column is None:
        return None
    if response:
        raise ConfigError(
            f"response_template is {response!r}, and {column!r} holds conversations, whose assistant turns are found without it. "
            "Drop it, or add instruction_template."
        )
    return ChatRows(ChatTemplate(tokenizer), column)


def _text_format(columns: Sequence[str], values: Mapping[str, Any], tokenizer: Any, eos: str) -> TextRows:
    response = values.get("response_template")
    trained = f"trained after {response!r}" if response else "trained whole"
    if template := values.get("data_formatter_template"):
        formatter = RowTemplate(template, columns, dict(tokenizer.special_tokens_map))
        return TextRows(
            formatter.fill, f"one text a row from data_formatter_template, {trained}", response, eos
        )
    field = values["dataset_text_field"]
    if field not in columns:
        raise DataError(
            f"dataset_text_field is {field!r}, and the rows have {', '.join(map(repr, columns))}. Name one of them."
        )
    return TextRows(
        lambda chunk, index: string_of(chunk, index, field),
        f"one text a row in {field!r}, {trained}",
        response,
        eos,
    )


def _pair_format(prompt: str, answer: str, spaced: bool, values: Mapping[str, Any], eos: str) -> PairRows:
    if response := values.get("response_template"):
        raise ConfigError(
            f"response_template is {response!r}, and the rows are pairs of {prompt!r} and {answer!r}, which need none. "
            "Drop it, or name the one text with dataset_text_field."
        )
    return PairRows(prompt, answer, eos, spaced)


def _ends_blank(text: str) -> bool:
    return text.endswith((" ", "\n", "\t"))


def _starts_blank(text: str) -> bool:
    return text.startswith((" ", "\n", "\t"))


def _short(value: Any) -> str:
    if value is None:
        return "null"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"  # noqa: PLR2004
