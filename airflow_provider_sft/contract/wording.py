"""How values, expectations and near misses read in a message."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any

from airflow_provider_sft.contract.schema import JSONSchema
from airflow_provider_sft.contract.secrets import holds_secret, mask_secrets

_MAX_SHOWN_CHARS = 60
_MAX_SHOWN_CHOICES = 14
_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def show(value: Any) -> str:
    """A value as the config spells it, cut to a line; never a secret."""
    if holds_secret(value):
        return "(hidden)"
    try:
        text = mask_secrets(repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[: _MAX_SHOWN_CHARS - 3]}..."


def describe(schema: JSONSchema) -> str:
    """What a schema takes: `a whole number of at least 1, or null`"""
    return _any_of(_alternatives(schema))


def suggest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` most probably stands for; None when nothing is near."""
    spelled = {_normal(choice): choice for choice in choices}
    matches = difflib.get_close_matches(_normal(word), spelled, n=1, cutoff=0.7)
    return spelled[matches[0]] if matches else None


def suggest_choice(value: Any, choices: list[Any]) -> str:
    """`Did you mean 'lora'? It takes 'none', 'lora', 'alora', 'pt' or null.`"""
    near = (
        suggest(value, [choice for choice in choices if isinstance(choice, str)])
        if isinstance(value, str)
        else None
    )
    listed = _any_of([show(choice) for choice in choices])
    if len(choices) > _MAX_SHOWN_CHOICES:
        listed = f"one of {len(choices)} names, which docs/config.md lists"
    return f"Did you mean {near!r}? It takes {listed}." if near else f"Give {listed}."


def _alternatives(schema: JSONSchema) -> list[str]:
    if "anyOf" in schema:
        return [text for member in schema["anyOf"] for text in _alternatives(member)]
    if "enum" in schema:
        return [show(choice) for choice in schema["enum"]]
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return [text for kind in kinds for text in _describe_kind(kind, schema)]


def _normal(word: str) -> str:
    return word.lower().replace("-", "_").strip()


def _describe_kind(kind: str, schema: JSONSchema) -> list[str]:
    if kind == "boolean":
        return ["true", "false"]
    if kind in ("integer", "number"):
        return [f"{_KINDS[kind]}{_describe_bounds(schema)}"]
    if kind == "array" and schema.get("items", {}).get("type") == "string":
        return ["a list of texts"]
    if kind in ("array", "string") and {"prefixItems", "pattern"} & schema.keys():
        return [f"{_KINDS[kind]} such as {show(schema['examples'][0])}"]
    return [_KINDS[kind]]


def _describe_bounds(schema: JSONSchema) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    parts = [
        *([f"of at least {low}"] if low is not None else []),
        *([f"above {above}"] if above is not None else []),
        *([f"of at most {high}"] if high is not None else []),
        *([f"below {below}"] if below is not None else []),
    ]
    return f" {' and '.join(parts)}" if parts else ""


def _any_of(parts: list[str]) -> str:
    unique = list(dict.fromkeys(parts))
    if len(unique) == 1:
        return unique[0]
    comma = "," if len(unique) == 2 and " " in unique[0] else ""  # noqa: PLR2004
    return f"{', '.join(unique[:-1])}{comma} or {unique[-1]}"
