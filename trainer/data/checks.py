"""Checks of values that a data_config holds: each failure is one sentence with place, value and expectation."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from airflow_provider_sft.contract.errors import ConfigError

_KIND_NAMES = {
    bool: "true or false", int: "a whole number", str: "a string", dict: "an object", list: "a list",
}  # fmt: skip
_LONGEST = 60


def check_keys(value: Any, known: Collection[str], where: str) -> None:
    """:raises ConfigError: no object, or one with a key that is not in `known`"""
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {show(value)}. Expected an object with {', '.join(known)}.")
    for key in value:
        if key not in known:
            raise ConfigError(f"{where} has the unknown key {key!r}. {suggest(str(key), known)}")


def take(mapping: Mapping[str, Any], key: str, kind: type, default: Any, where: str) -> Any:
    """The value under `key`, or `default` where it is absent or null.

    :raises ConfigError: not of `kind`
    """
    value = mapping.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where}.{key} is {show(value)}. Expected {_KIND_NAMES[kind]}.")
    return value


def take_choice(
    mapping: Mapping[str, Any], key: str, choices: Collection[str], default: str | None, where: str
) -> Any:
    """:raises ConfigError: none of `choices`"""
    value = take(mapping, key, str, default, where)
    if value is not None and value not in choices:
        raise ConfigError(f"{where}.{key} is {value!r}. {suggest(value, choices)}")
    return value


def suggest(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Expected one of {', '.join(known)}."


def show(value: Any) -> str:
    """A value in a sentence, cut where it is long."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
