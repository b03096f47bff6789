"""What a format of rows is to the code that tokenises them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from airflow_provider_sft.contract.errors import DataError
from trainer.data.masking import Span
from trainer.data.rows import RowChunk

# A text, and what of it is trained; None where that cannot be told.
Example = tuple[str, list[Span] | None]
_LONGEST = 60


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
        """:raises DataError: a row is not of this format"""


@dataclass(frozen=True)
class Pretokenised:
    """`input_ids` and `labels`, taken as they are."""

    description: str = "pretokenised rows (input_ids and labels)"
    unlabelled: str = "no label of theirs is trained"


def read_string(chunk: RowChunk, index: int, column: str, named_by: str) -> str:
    """
    :param named_by: for the sentence: the key that names the column
    :raises DataError: missing, or no string
    """
    value = chunk.rows[index].get(column)
    if type(value) is str:
        return value
    if column not in chunk.rows[index]:
        present = ", ".join(map(repr, chunk.rows[index])) or "nothing"
        raise DataError(
            f"{chunk.where(index)}: {column!r} is missing. {named_by} names it, and the row has {present}. Add it."
        )
    raise DataError(f"{chunk.where(index)}: {column!r} is {describe_value(value)}. Expected a string.")


def describe_value(value: Any) -> str:
    """`null`, or its type and how it looks, cut where it is long."""
    if value is None:
        return "null"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= _LONGEST else text[: _LONGEST - 3] + '...'}"
