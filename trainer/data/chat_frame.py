"""What a chat template writes around an assistant's turn, and finding the turns by it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.masking import Span

# Words that occur in no template and no other text.
_WORDS = ("Wq0first", "Wq1answer", "Wq2second", "Wq3reply")
PROBE = [
    {"role": role, "content": words} for role, words in zip(("user", "assistant") * 2, _WORDS, strict=True)
]

_MARK = r"<[^<>\s]+>|\[[^\[\]\s]+\]"
_PIECE = re.compile(rf"(?P<mark>{_MARK})|[^\s<\[]+|[<\[]")


@dataclass(frozen=True)
class Frame:
    r"""What the template writes around an assistant's turn.

    :param header: what stands before it, such as `<|im_start|>assistant\n`
    :param stop: what ends it, such as `<|im_end|>`; empty when only the next turn does
    :param follows: what stands between it and the next user's words
    """

    header: str
    stop: str
    follows: str


def find_gaps(text: str) -> list[str] | None:
    """What stands after each of the probe's words, up to the next."""
    places = [text.find(words) for words in _WORDS]
    if -1 in places or places != sorted(places):
        return None
    ends = [*places[1:], len(text)]
    return [text[start + len(words) : end] for words, start, end in zip(_WORDS, places, ends, strict=True)]


def after_words(text: str) -> str:
    """What stands after the user's words, in a text that ends with the user's turn."""
    return text.rpartition(_WORDS[0])[2]


def before_words(text: str) -> str:
    """What stands before the user's words."""
    return text.partition(_WORDS[0])[0]


def find_stop(gaps: Sequence[str], before: str) -> str:
    """What ends an assistant's turn, in the middle of a conversation as at its end, with any white space before it.

    Known by what the template writes; the tokenizer need not know it. A template that always invites the next answer
    ends with the mark and the beginning of a header: of glued marks, those of a header are left out.

    :param gaps: as `find_gaps` found them
    :param before: what stands before the first words: a header, and perhaps the template's own system turn
    """
    follows, last = gaps[1], gaps[3]
    words = last.split(maxsplit=1)
    start = last.index(words[0]) if words else 0
    end = start
    for piece in _PIECE.finditer(words[0]) if words else ():
        ends_a_system_turn = end == start and piece["mark"]
        if not follows.startswith(last[: end + len(piece[0])]) or (
            piece[0] in before and not ends_a_system_turn
        ):
            break
        end += len(piece[0])
    return last[:end] if end > start else ""


def find_header(gap: str, asked: str, invited: str) -> str:
    """What every assistant's turn starts with.

    :param gap: between the user's words and the assistant's
    :param asked: the end of the user's turn
    :param invited: the same with what invites an answer, which may go on past the header, with `<think>` for example
    """
    header = gap[: common_length(gap, invited)]
    rest = header[len(asked) :] if header.startswith(asked) else ""
    return rest if rest.strip() else header


def search_turns(text: str, frame: Frame) -> list[Span]:
    spans, position = [], text.find(frame.header)
    while position >= 0:
        start = position + len(frame.header)
        end = text.find(frame.stop or frame.follows, start)
        end = len(text) if end < 0 else end + len(frame.stop)
        spans.append((start, end))
        position = text.find(frame.header, end)
    return spans


def looks_like(frame: Frame, words: str) -> bool:
    """Whether a row's own words hold what the template would write."""
    return frame.header.strip() in words or (frame.stop or frame.follows).strip() in words


def strings_of(value: Any) -> Iterator[str]:
    """Every text in a conversation, but for the names of roles."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key != "role":
                yield from strings_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_of(item)


def common_length(first: str, second: str) -> int:
    """Of the longest text that both start with."""
    return next(
        (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
