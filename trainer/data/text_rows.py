"""Rows that are one text, and rows that are a prompt and its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.data.masking import TO_END, Span
from trainer.data.row_format import Example, read_strings
from trainer.data.rows import RowChunk

_BLANK = (" ", "\n", "\t")
_WHOLE: list[Span] = [(0, TO_END)]


@dataclass(frozen=True)
class TextRows:
    """One text a row, trained from the end of the last `response_template` on, or whole."""

    read_texts: Callable[[RowChunk], list[str]]
    description: str
    response_template: str | None
    eos: str
    special_tokens: bool = True

    @property
    def unlabelled(self) -> str:
        return f"response_template {self.response_template!r} does not occur in them"

    def render(self, chunk: RowChunk) -> list[Example]:
        eos, template = self.eos, self.response_template
        texts = self.read_texts(chunk)
        ended = [_end(text, eos) for text in texts]
        if template is None:
            return [(text, _WHOLE if text else None) for text in ended]
        starts = [text.rfind(template) for text in texts]
        size = len(template)
        return [
            (text, [(start + size, TO_END)] if start >= 0 else None)
            for text, start in zip(ended, starts, strict=True)
        ]


@dataclass(frozen=True)
class PairRows:
    """A prompt column and a column that answers it; the answer is trained.

    :param joined_by_space: put a space between the two where neither has white space there
    :param whole: train the prompt too
    :param unread: the other columns, for people
    """

    prompt: str
    answer: str
    eos: str
    joined_by_space: bool = True
    whole: bool = False
    unread: str = ""
    special_tokens: bool = True
    unlabelled: str = "there is no answer in them"

    @property
    def description(self) -> str:
        masked = "trained too" if self.whole else "masked"
        unread = f"; not read: {self.unread}" if self.unread else ""
        return f"pairs of {self.prompt!r} ({masked}) and {self.answer!r}{unread}"

    def render(self, chunk: RowChunk) -> list[Example]:
        prompts, answers = (
            read_strings(chunk, column, "The first row") for column in (self.prompt, self.answer)
        )
        return [self._example(*pair) for pair in zip(prompts, answers, strict=True)]

    def _example(self, prompt: str, answer: str) -> Example:
        joint = (
            " "
            if self.joined_by_space and not prompt.endswith(_BLANK) and not answer.startswith(_BLANK)
            else ""
        )
        ending = "" if self.eos and answer.endswith(self.eos) else self.eos
        if not (prompt + answer).strip():
            return "", None
        return f"{prompt}{joint}{answer}{ending}", _WHOLE if self.whole else [(len(prompt), TO_END)]


def _end(text: str, eos: str) -> str:
    """With its end; a blank text gets none, so that it has nothing to train."""
    if not text.strip():
        return ""
    return text if eos and text.endswith(eos) else text + eos


def read_column(column: str, named_by: str) -> Callable[[RowChunk], list[str]]:
    """A reader of one column's texts.

    :param named_by: for sentences: the key that names the column
    """
    return lambda chunk: read_strings(chunk, column, named_by)
