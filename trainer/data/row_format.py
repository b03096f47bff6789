"""What a format of rows is to the code that tokenises them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

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


def read_strings(chunk: RowChunk, column: str, named_by: str) -> list[str]:
    """The texts of one column.

    :param named_by: for the sentence: the key that names the column
    :raises DataError: missing, or no string, in a row that is named
    """
    values = [row.get(column) for row in chunk.rows]
    for index, value in enumerate(values):
        if type(value) is not str:
            raise _no_string(chunk, index, column, named_by)
    return cast("list[str]", values)


def _no_string(chunk: RowChunk, index: int, column: str, named_by: str) -> DataError:
    row = chunk.rows[index]
    if column not in row:
        present = ", ".join(map(repr, row)) or "nothing"
        return DataError(
            f"{chunk.where(index)}: {column!r} is missing. {named_by} names it, and the row has {present}. Add it."
        )
    return DataError(f"{chunk.where(index)}: {column!r} is {describe_value(row[column])}. Expected a string.")


def describe_value(value: Any) -> str:
    """`null`, or its type and how it looks, cut where it is long."""
    if value is None:
        return "null"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= _LONGEST else text[: _LONGEST - 3] + '...'}"
