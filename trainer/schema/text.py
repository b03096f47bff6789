"""Upstream's help texts, made fit for a table: a sentence or two, no markup."""

from __future__ import annotations

import re

_CLEAN = (
    (re.compile(r"<[^>]+>"), ""),
    (re.compile(r"\[([^\]]+)\]\(https?://[^)]+\)"), r"\1"),
    (re.compile(r"\s*\(useful only when[^)]*(\([^)]*\)[^)]*)?\)"), ""),
    (re.compile(r"%%"), "%"),
    (re.compile(r"(?<!\.)\.\s*\.(?!\.)"), "."),
    (re.compile(r"🤗 "), ""),
    (re.compile(r"`?\bNone\b`?"), "null"),
    (re.compile(r"`?\bTrue\b`?"), "true"),
    (re.compile(r"`?\bFalse\b`?"), "false"),
    (re.compile(r"\s+"), " "),
)
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)\s+(?=[A-Z`'\[])")
_MAX_CHARS = 240


def first_sentences(text: str) -> str:
    """The first two sentences, the second only where both are short."""
    for pattern, replacement in _CLEAN:
        text = pattern.sub(replacement, text)
    sentences = _SENTENCE_END.split(text.strip())
    kept = sentences[0]
    if len(sentences) > 1 and len(kept) + len(sentences[1]) < _MAX_CHARS:
        kept = f"{kept} {sentences[1]}"
    return kept if not kept or kept.endswith((".", "!", "?")) else f"{kept}."
