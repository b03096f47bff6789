"""A conversation as its chat template writes it, and where the assistant's turns stand in that text.

The text is rendered once and searched; a conversation whose own text looks like the template's is rendered turn by
turn instead. Nothing here tokenises. Templates are untrusted: they run in transformers' sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from airflow_provider_sft.contract.errors import ConfigError
from trainer.data.masking import Span

Message = Mapping[str, Any]
_GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
# Words that occur in no template and no other text.
_WORDS = ("Wq0first", "Wq1answer", "Wq2second", "Wq3reply")
_PROBE = [
    {"role": role, "content": words} for role, words in zip(("user", "assistant") * 2, _WORDS, strict=True)
]


class TemplateFailedError(Exception):
    """The template could not render this row."""


@dataclass(frozen=True)
class _Frame:
    r"""What the template writes around an assistant's turn.

    :param header: what stands before it, such as `<|im_start|>assistant\n`
    :param stop: what ends it, such as `<|im_end|>`; empty when only the next turn does
    :param follows: what stands between it and the next user's words
    """

    header: str
    stop: str
    follows: str


class ChatTemplate:
    """The tokenizer's chat template.

    :raises ConfigError: there is none, or it is no Jinja, or the sandbox stops it
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                "The rows are conversations, and the tokenizer has no chat template. Set 'chat_template', or tune a chat "
                "model."
            )
        self.source: str = tokenizer.get_chat_template()
        self._special_tokens = dict(tokenizer.special_tokens_map)
        self._added_tokens = sorted(tokenizer.added_tokens_encoder, key=len, reverse=True)
        self._check()
        self._marked = self.source if has_generation_markers(self.source) else self._marked_like(tokenizer)

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
        return text, _common_length(text, self.render(said, prompt=True, **extra))

    def _render(self, source: str, messages: Sequence[Message], **options: Any) -> tuple[str, list[Span]]:
        cleaned = [
            {key: value for key, value in message.items() if value is not None} for message in messages
        ]
        try:
            texts, spans = render_jinja_template(
                conversations=[cleaned], chat_template=source, **{**self._special_tokens, **options}
            )
        except jinja2.exceptions.SecurityError as error:
            raise ConfigError(
                f"The chat template does what the sandbox forbids ({error}). Take that out of it."
            ) from error
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
            OverflowError,
        ) as error:
            raise TemplateFailedError(str(error)) from error
        return texts[0], (spans[0] if spans else [])

    def _marked_like(self, tokenizer: Any) -> str | None:
        """The copy that trl has of the template with generation markers, if trl knows it and its copy writes the same."""
        try:
            marked: str | None = get_training_chat_template(tokenizer)
        except (ValueError, TypeError, jinja2.TemplateError):
            return None
        try:
            same = (
                marked is not None and self._render(marked, _PROBE)[0] == self._render(self.source, _PROBE)[0]
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
        if frame is not None and not any(_looks_like(frame, words) for words in _strings([*messages, extra])):
            spans = _search_turns(text, frame)
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
            start = _common_length(before, after)
            if not (text.startswith(before[:start]) and text.startswith(after.rstrip())):
                return None
            spans.append((start, self._turn_end(text, start, len(after))))
        return spans

    def _turn_end(self, text: str, start: int, end: int) -> int:
        stop = self._frame.stop if self._frame else ""
        found = text.rfind(stop, start, end) if stop else -1
        return found + len(stop) if found >= 0 else min(end, len(text))

    @cached_property
    def _frame(self) -> _Frame | None:
        """Learned from a conversation of words that occur nowhere else; None when the template has no such frame."""
        try:
            text, asked = self.render(_PROBE), self.render(_PROBE[:1])
            invited = self.render(_PROBE[:1], prompt=True)
        except TemplateFailedError:
            return None
        gaps = _gaps(text)
        if gaps is None:
            return None
        header = _assistant_header(gaps[0], _after_words(asked), _after_words(invited))
        stop = self._stop(gaps[1])
        stop = stop if gaps[3].startswith(stop) else ""
        follows = gaps[1]
        usable = header.strip() and (stop or follows.strip()) and header in gaps[2]
        return _Frame(header, stop, follows) if usable else None

    def _stop(self, follows: str) -> str:
        """The added token that `follows` starts with, and any white space before it."""
        for token in self._added_tokens:
            if token and follows.lstrip().startswith(token):
                return follows[: follows.index(token) + len(token)]
        return ""


def _gaps(text: str) -> list[str] | None:
    """What stands after each of the probe's words, up to the next."""
    places = [text.find(words) for words in _WORDS]
    if -1 in places or places != sorted(places):
        return None
    ends = [*places[1:], len(text)]
    return [text[start + len(words) : end] for words, start, end in zip(_WORDS, places, ends, strict=True)]


def _after_words(text: str) -> str:
    """What stands after the user's words, in a text that ends with the user's turn."""
    return text.rpartition(_WORDS[0])[2]


def _assistant_header(gap: str, asked: str, invited: str) -> str:
    """What every assistant's turn starts with.

    :param gap: between the user's words and the assistant's
    :param asked: the end of the user's turn
    :param invited: the same with what invites an answer, which may go on past the header, with `<think>` for example
    """
    header = gap[: _common_length(gap, invited)]
    rest = header[len(asked) :] if header.startswith(asked) else ""
    return rest if rest.strip() else header


def _search_turns(text: str, frame: _Frame) -> list[Span]:
    spans, position = [], text.find(frame.header)
    while position >= 0:
        start = position + len(frame.header)
        end = text.find(frame.stop or frame.follows, start)
        end = len(text) if end < 0 else end + len(frame.stop)
        spans.append((start, end))
        position = text.find(frame.header, end)
    return spans


def _looks_like(frame: _Frame, words: str) -> bool:
    """Whether a row's own words hold what the template would write."""
    return frame.header.strip() in words or (frame.stop or frame.follows).strip() in words


def _strings(value: Any) -> Iterator[str]:
    """Every text in a conversation, but for the names of roles."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key != "role":
                yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _common_length(first: str, second: str) -> int:
    """Of the longest text that both start with."""
    return next(
        (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
