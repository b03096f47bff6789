"""What a held-out row asks and expects, and how near an answer comes to it. Stdlib only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_sft.contract.errors import ConfigError, DataError

# The column pairs of one prompt and one answer, in the order they are looked for.
_PAIRS = (("input", "output"), ("prompt", "completion"))
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Question:
    """:param prompt: text, or chat messages that the tokenizer's template turns into text"""

    prompt: str | list[dict[str, Any]]
    expected: str


def build_question(
    row: Mapping[str, Any], *, where: str, text_field: str | None = None, response_template: str | None = None
) -> Question:
    """
    :param where: file and line, for sentences
    :param text_field: the column that holds prompt, `response_template` and answer as one text
    :raises DataError: the row holds no answer to compare with
    """
    if text_field is not None:
        return _split_text(row, where, text_field, response_template)
    if "messages" in row:
        return _split_chat(row["messages"], where)
    for prompt, answer in _PAIRS:
        if prompt in row and answer in row:
            return Question(str(row[prompt]), str(row[answer]))
    raise DataError(
        f"{where}: the columns are {', '.join(map(repr, row))}. Expected 'messages', 'input' and 'output', or "
        f"'prompt' and 'completion'; for one text, name it with --text-field and --response-template."
    )


def _split_text(row: Mapping[str, Any], where: str, field: str, template: str | None) -> Question:
    if not template:
        raise ConfigError(
            f"--text-field is {field!r} without --response-template. Say what precedes the answer."
        )
    if field not in row:
        raise DataError(f"{where}: {field!r} is missing. Correct --text-field, or the row.")
    head, found, answer = str(row[field]).rpartition(template)
    if not found:
        raise DataError(
            f"{where}: {template!r} does not occur in {field!r}. Correct --response-template, or the row."
        )
    return Question(head + template, answer)


def _split_chat(messages: Sequence[dict[str, Any]], where: str) -> Question:
    if len(messages) < 2 or messages[-1].get("role") != "assistant":  # noqa: PLR2004  # a question and its answer
        raise DataError(
            f"{where}: 'messages' does not end with an assistant's answer. Add it, or leave the row out."
        )
    return Question(list(messages[:-1]), str(messages[-1]["content"]))


def score(answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """The share of rows where the answer is exactly what was expected (spaces around it aside), the share where it
    holds it anywhere in any case, and the mean F1 over words: 1.0 is best. From lenient to strict they say whether
    the model knows, and whether it answers in the form that was asked for.
    """
    pairs = list(zip(answers, expected, strict=True))
    return {
        "exact_match": _mean([float(answer.strip() == wanted.strip()) for answer, wanted in pairs]),
        "contains": _mean([float(wanted.strip().lower() in answer.lower()) for answer, wanted in pairs]),
        "token_f1": _mean([_token_f1(answer, wanted) for answer, wanted in pairs]),
    }


def _token_f1(answer: str, expected: str) -> float:
    """SQuAD's F1: the harmonic mean of precision and recall over the two bags of words."""
    said, wanted = (Counter(_WORD.findall(text.lower())) for text in (answer, expected))
    shared = (said & wanted).total()
    if not shared:
        return float(said == wanted)
    return 2 * shared / (said.total() + wanted.total())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
