"""Real data for a first tuning: in which language is a message written?

Made from dialogues in ChatterBot's corpus format (a folder a language, YAML files in it), such as the package
chatterbot-corpus (BSD-3-Clause) ships. A support desk that answers in eight languages routes its mail like this.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

LANGUAGES = ("Dutch", "English", "German", "Indonesian", "Italian", "Portuguese", "Spanish", "Turkish")
# Shorter ones ("ok", "Hi") are no language's own.
_MESSAGE_CHARS = range(20, 121)
_SEED = 42

Row = dict[str, Any]


def write_language_rows(
    *, corpus_dir: str, output_dir: str, train_per_language: int = 20, held_out_per_language: int = 8
) -> dict[str, str]:
    """Write chat rows to `train.jsonl` and `held_out.jsonl` below `output_dir`; no message is in both.

    The same corpus gives the same files.

    :returns: the path of each file
    """
    messages = keep_unambiguous({language: read_messages(corpus_dir, language) for language in LANGUAGES})
    train: list[Row] = []
    held_out: list[Row] = []
    shuffled = random.Random(_SEED)  # noqa: S311  # a split, no secret
    for language, texts in messages.items():
        needed = train_per_language + held_out_per_language
        if len(texts) < needed:
            raise ValueError(
                f"{corpus_dir} holds {len(texts)} {language} messages; {needed} are needed. Ask for fewer."
            )
        rows = [build_row(text, language) for text in shuffled.sample(texts, needed)]
        train += rows[:train_per_language]
        held_out += rows[train_per_language:]
    shuffled.shuffle(train)
    return {
        "train": write_rows(Path(output_dir, "train.jsonl"), train),
        "held_out": write_rows(Path(output_dir, "held_out.jsonl"), held_out),
    }


def read_messages(corpus_dir: str, language: str) -> list[str]:
    """Every message of the language's dialogues once, in order of the alphabet."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    messages: set[str] = set()
    for path in sorted(Path(corpus_dir, language.lower()).glob("*.yml")):
        with path.open(encoding="utf-8") as file:
            dialogues = yaml.load(file, Loader=loader)["conversations"]  # noqa: S506  # one of the two safe ones
        messages.update(" ".join(str(message).split()) for dialogue in dialogues for message in dialogue)
    return sorted(message for message in messages if len(message) in _MESSAGE_CHARS)


def keep_unambiguous(messages: dict[str, list[str]]) -> dict[str, list[str]]:
    """Without the messages that stand in more than one language's files."""
    seen = Counter(text.casefold() for texts in messages.values() for text in texts)
    return {
        language: [text for text in texts if seen[text.casefold()] == 1]
        for language, texts in messages.items()
    }


def build_row(message: str, language: str, languages: Sequence[str] = LANGUAGES) -> Row:
    question = (
        f"{message}\n\nWhich language is the message above written in? "
        f"Answer with one word: {', '.join(languages)}."
    )
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": language}]}


def write_rows(path: Path, rows: Iterable[Row]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    log.info("%s: %d rows, the first: %s", path, len(lines), lines[0])
    return str(path)
