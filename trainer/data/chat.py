"""A conversation as its chat template writes it, and where the assistant's turns stand in that text.

The text is rendered once and searched; a conversation whose own text looks like the template's is rendered turn by
turn instead. Nothing here tokenises. Templates are untrusted: they run in transformers' sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import MappingProxyType
from typing import Any

import jinja2
from transformers.utils import chat_template_utils
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from airflow_provider_sft.contract.errors import ConfigError
from trainer.data.chat_frame import (
    PROBE,
    Frame,
    after_words,
    before_words,
    common_length,
    find_gaps,
    find_header,
    find_stop,
    looks_like,
    search_turns,
    strings_of,
)
from trainer.data.masking import Span
from trainer.data.sandbox import LimitedTemplate, limit_environment
from trainer.data.time_limit import LimitError, limited_time

Message = Mapping[str, Any]
_GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_COMPILE = chat_template_utils._compile_jinja_template  # noqa: SLF001


class TemplateFailedError(Exception):
    """The template could not render this row."""


class _Conversation(list[Any]):
    """The messages, and under names the columns of their row, as fms-hf-tuning's templates read them."""

    def __init__(self, messages: Sequence[Message], row: Mapping[str, Any]) -> None:
        super().__init__(messages)
        self._row = row

    def __getitem__(self, key: Any) -> Any:
        return self._row[key] if isinstance(key, str) else super().__getitem__(key)


class _RowTemplate(LimitedTemplate):
    """A compiled chat template, for transformers to render; it sees the row that is set."""

    row: Mapping[str, Any] = MappingProxyType({})
    is_row_itself = False

    def generate(self, **variables: Any) -> Iterator[str]:
        messages = self.row if self.is_row_itself else _Conversation(variables["messages"], self.row)
        return super().generate(**{**variables, "messages": messages})


class ChatTemplate:
    """The tokenizer's chat template.

    :param column: of the rows, that holds the messages; None where the template reads the row itself
    :raises ConfigError: there is none, or it is no Jinja, or the sandbox stops it
    """

    def __init__(self, tokenizer: Any, column: str | None = "messages") -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                "The rows are conversations, and the tokenizer has no chat template. Set 'chat_template', or tune a chat "
                "model."
            )
        self.source: str = tokenizer.get_chat_template()
        self._special_tokens = dict(tokenizer.special_tokens_map)
        self._column = column
        self._compiled: dict[str, _RowTemplate] = {}
        self._check()
        self._marked = self.source if has_generation_markers(self.source) else self._marked_like(tokenizer)

    @property
    def ends_itself(self) -> bool:
        """Whether what it writes last is the mark that ends a turn, so that no end of sequence belongs after it."""
        return self._frame is not None and bool(self._frame.stop)

    def render(self, messages: Sequence[Message], *, prompt: bool = False, **extra: Any) -> str:
        """
        :param prompt: end with what invites the assistant's answer
        :raises TemplateFailedError: the template refuses this conversation
        """
        return self._render(self.source, messages, add_generation_prompt=prompt, **extra)[0]

    def render_turns(self, messages: Sequence[Message], **extra: Any) -> tuple[str, list[Span] | None]:
        """The text, and the spans of the assistant's turns with what ends them; None when they cannot be told."""
        if self._marked is None:
            text = self.render(messages, **extra)
            return text, self._find_turns(text, messages, extra)
        text, spans = self._render(self._marked, messages, return_assistant_tokens_mask=True, **extra)
        if self._marked is not self.source and text != (written := self.render(messages, **extra)):
            return written, self._find_turns(written, messages, extra)
        return text, [span for span in spans if span[1] > span[0]]

    def render_answer(
        self, said: Sequence[Message], answer: Sequence[Message], **extra: Any
    ) -> tuple[str, int]:
        """The text of a conversation, and where `answer` starts in it: where it goes on from what invites it."""
        text = self.render([*said, *answer], **extra)
        return text, common_length(text, self.render(said, prompt=True, **extra))

    def _render(
        self,
        source: str,
        messages: Sequence[Message],
        row: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> tuple[str, list[Span]]:
        """:param row: the whole row, of which `messages` may be the beginning"""
        cleaned = [
            {key: value for key, value in message.items() if value is not None} for message in messages
        ]
        try:
            template = self._compile(source)
            template.row, template.is_row_itself = self._row_of(cleaned, row), self._column is None
            with limited_time(), _compiled_by(lambda _source: template):
                texts, spans = chat_template_utils.render_jinja_template(
                    conversations=[cleaned], chat_template=source, **{**self._special_tokens, **options}
                )
        except LimitError as error:
            raise _stopped(error) from error
        except jinja2.exceptions.SecurityError as error:
            raise ConfigError(
                f"The chat template does what the sandbox forbids ({error}). Take that out of it."
            ) from error
        except Exception as error:  # whatever foreign code raises
            raise TemplateFailedError(str(error)) from error
        return texts[0], (spans[0] if spans else [])

    def _compile(self, source: str) -> _RowTemplate:
        if source not in self._compiled:
            # With transformers' own filters and functions.
            environment = _COMPILE("").environment
            self._compiled[source] = _RowTemplate(limit_environment(environment), source)
        return self._compiled[source]

    def _row_of(self, messages: Sequence[Message], row: Mapping[str, Any] | None) -> Mapping[str, Any]:
        if self._column is None:
            return row or {}
        column = (row or {}).get(self._column)
        known = column[: len(messages)] if isinstance(column, list) else messages
        return {**(row or {}), self._column: known}

    def _marked_like(self, tokenizer: Any) -> str | None:
        """The copy that trl has of the template with generation markers, if trl knows it and its copy writes the same."""
        try:
            with (
                limited_time(),
                _compiled_by(self._compile),
            ):  # trl renders it, to see what it does with tools
                marked: str | None = get_training_chat_template(tokenizer)
        except LimitError as error:
            raise _stopped(error) from error
        except (ValueError, TypeError, jinja2.TemplateError):
            return None
        try:
            same = (
                marked is not None and self._render(marked, PROBE)[0] == self._render(self.source, PROBE)[0]
            )
        except TemplateFailedError:
            return None
        return marked if same else None

    def _check(self) -> None:
        environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)
        try:
            environment.parse(_GENERATION_TAG.sub("", self.source))
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"The chat template is no Jinja: line {error.lineno}: {error.message}. Correct it."
            ) from error

    def _find_turns(
        self, text: str, messages: Sequence[Message], extra: Mapping[str, Any]
    ) -> list[Span] | None:
        count = sum(message["role"] == "assistant" for message in messages)
        frame = self._frame
        if frame is not None and not any(
            looks_like(frame, words) for words in strings_of([*messages, extra])
        ):
            spans = search_turns(text, frame)
            if len(spans) == count:
                return spans
        return self._turns_by_prefix(text, messages, extra)

    def _turns_by_prefix(
        self, text: str, messages: Sequence[Message], extra: Mapping[str, Any]
    ) -> list[Span] | None:
        """Render the conversation up to each assistant's turn: quadratic, and right whatever the words say."""
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                before = self.render(messages[:index], prompt=True, **extra)
                after = self.render(messages[: index + 1], **extra)
            except TemplateFailedError:
                return None
            start = common_length(before, after)
            if not (text.startswith(before[:start]) and text.startswith(after.rstrip())):
                return None
            spans.append((start, self._turn_end(text, start, len(after))))
        return spans

    def _turn_end(self, text: str, start: int, end: int) -> int:
        stop = self._frame.stop if self._frame else ""
        found = text.rfind(stop, start, end) if stop else -1
        return found + len(stop) if found >= 0 else min(end, len(text))

    @cached_property
    def _frame(self) -> Frame | None:
        """Learned from a conversation of words that occur nowhere else; None when the template has no such frame."""
        try:
            text, asked = self.render(PROBE), self.render(PROBE[:1])
            invited = self.render(PROBE[:1], prompt=True)
        except TemplateFailedError:
            return None
        gaps = find_gaps(text)
        if gaps is None:
            return None
        header = find_header(gaps[0], after_words(asked), after_words(invited))
        stop = find_stop(gaps, before_words(text))
        follows = gaps[1]
        usable = header.strip() and (stop or follows.strip()) and header in gaps[2]
        return Frame(header, stop, follows) if usable else None


@contextmanager
def _compiled_by(compile_source: Callable[[str], _RowTemplate]) -> Iterator[None]:
    """Let transformers render a limited template instead of one that it compiles without limits."""
    stock = chat_template_utils._compile_jinja_template  # noqa: SLF001
    chat_template_utils._compile_jinja_template = compile_source  # noqa: SLF001
    try:
        yield
    finally:
        chat_template_utils._compile_jinja_template = stock  # noqa: SLF001


def _stopped(error: LimitError) -> ConfigError:
    return ConfigError(f"chat_template (or the tokenizer's own) is stopped: {error}. Simplify it.")


def says_nothing(text: str, words: Any) -> bool:
    """Whether a template wrote nothing of a row: no text at all, or the first word of none of its texts."""
    said = [first[0] for value in strings_of(words) if (first := value.split(maxsplit=1))]
    return not text.strip() or (bool(said) and not any(word in text for word in said))
