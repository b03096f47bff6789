"""Rows that are one text, and rows that are a prompt and its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.data.masking import TO_END
from trainer.data.row_format import Example, read_string
from trainer.data.rows import RowChunk

_BLANK = (" ", "\n", "\t")


@dataclass(frozen=True)
class TextRows:
    """One text a row, trained from the end of the last `response_template` on, or whole."""

    read_text: Callable[[RowChunk, int], str]
    description: str
    response_template: str | None
    eos: str
    special_tokens: bool = True

    @property
    def unlabelled(self) -> str:
        return f"response_template {self.response_template!r} does not occur in them"

    def render(self, chunk: RowChunk) -> list[Example]:
        read, template, eos = self.read_text, self.response_template, self.eos
        examples: list[Example] = []
        for index in range(len(chunk.rows)):
            text = read(chunk, index)
            found = text.rfind(template) + len(template) if template and template in text else None
            if eos and not text.endswith(eos):
                text += eos
            start = 0 if template is None else found
            examples.append((text, None if start is None else [(start, TO_END)]))
        return examples


@dataclass(frozen=True)
class PairRows:
    """A prompt column and a column that answers it; the answer is trained.

    :param joined_by_space: put a space between the two where neither has white space there
    :param whole: train the prompt too
    """

    prompt: str
    answer: str
    eos: str
    joined_by_space: bool = True
    whole: bool = False
    special_tokens: bool = True
    unlabelled: str = "there is no answer in them"

    @property
    def description(self) -> str:
        masked = "trained too" if self.whole else "masked"
        return f"pairs of {self.prompt!r} ({masked}) and {self.answer!r}"

    def render(self, chunk: RowChunk) -> list[Example]:
        return [self._example(chunk, index) for index in range(len(chunk.rows))]

    def _example(self, chunk: RowChunk, index: int) -> Example:
        prompt = read_string(chunk, index, self.prompt, "The first row")
        answer = read_string(chunk, index, self.answer, "The first row")
        joint = (
            " "
            if self.joined_by_space and not prompt.endswith(_BLANK) and not answer.startswith(_BLANK)
            else ""
        )
        ending = "" if self.eos and answer.endswith(self.eos) else self.eos
        return f"{prompt}{joint}{answer}{ending}", [(0 if self.whole else len(prompt), TO_END)]


def read_column(column: str, named_by: str) -> Callable[[RowChunk, int], str]:
    """A reader of one column's text."""

    def read(chunk: RowChunk, index: int) -> str:
        value = chunk.rows[index].get(column)
        return value if type(value) is str else read_string(chunk, index, column, named_by)

    return read
