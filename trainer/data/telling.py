"""Statistics as sentences, for the log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.data.statistics import Segment

_SHOWN_CHARS = 600
# From this share of lost rows on, a person must know.
_MUCH = 0.2
_ROLES = {"train": "training", "validation": "validation"}
_BRACKETS = {ord("⟦"): "\\u27e6", ord("⟧"): "\\u27e7"}  # of the row itself: ours say what is trained


def describe_statistics(name: str, statistics: Mapping[str, Any]) -> Iterator[str]:
    """For the log, a sentence each."""
    share = f"{statistics['trained_token_share']:.1%}"
    yield (
        f"{name}: {statistics['rows']:,} rows, {statistics['tokens']:,} tokens, {share} of them trained; "
        f"{statistics['format']}."
    )
    an_epoch = statistics.get("rows_an_epoch", statistics["rows"])
    if an_epoch != statistics["rows"]:
        yield f"{name}: packing and sampling weights make them {an_epoch:,} rows an epoch."
    lengths = ", ".join(f"{key} {value:,}" for key, value in statistics["lengths"].items())
    yield f"{name}: tokens a row: {lengths}."
    if statistics["truncated_rows"]:
        yield (
            f"{name}: {statistics['truncated_rows']:,} rows were cut to {statistics['max_length']:,} tokens. Raise "
            "max_seq_length to keep them whole."
        )
    for entry in statistics["dropped"]:
        more = ", …" if entry["count"] > len(entry["first"]) else ""
        yield f"{name}: {entry['count']:,} rows left out, {entry['reason']}: {', '.join(entry['first'])}{more}."
    for number, sample in enumerate(statistics["samples"], 1):
        yield f"{name}: sample {number}, trained between ⟦ ⟧: {mark_trained(sample)}"


def describe_losses(statistics: Mapping[str, Any]) -> Iterator[str]:
    """For the result: a notice for each role of which a fifth of the rows or more was left out or cut, or any has no answer."""
    for name, part in (("train", statistics), ("validation", statistics.get("validation"))):
        if part and (losses := _describe_loss(part)):
            yield f"Of {part['rows'] + part['dropped_rows']:,} {_ROLES[name]} rows, {losses}."
        for entry in part["unanswered"] if part else ():
            yield (
                f"{entry['count']:,} {_ROLES[name]} rows have no answer, first {entry['first'][0]}: {entry['reason']}. "
                "Take them out, or add their answers."
            )


def _describe_loss(part: Mapping[str, Any]) -> str:
    dropped, cut = part["dropped_rows"], part["truncated_rows"]
    if dropped + cut < _MUCH * (part["rows"] + dropped) or not dropped + cut:
        return ""
    reasons = "; ".join(
        f"{entry['count']:,} because {entry['reason']}, first {entry['first'][0]}"
        for entry in part["dropped"]
    )
    losses = [
        f"{dropped:,} were left out ({reasons})" if dropped else "",
        f"{cut:,} were cut to {part['max_length']:,} tokens (raise max_seq_length to keep them whole)"
        if cut
        else "",
    ]
    return " and ".join(filter(None, losses))


def mark_trained(sample: Sequence[Segment]) -> str:
    """One row as text, what is trained of it in ⟦ ⟧, cut where it is long."""
    parts = [(text.translate(_BRACKETS), trained) for text, trained in sample]
    text = "".join(f"⟦{text}⟧" if trained else text for text, trained in parts)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} …"
