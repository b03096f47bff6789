"""One value against its schema: taken as it is, coerced, or refused with what to give instead.

Coerced is only what a template or YAML made of a value: "4" and "1e-5" where a number belongs, "true" where a
boolean belongs, 5.0 for a whole number. Text stays text wherever the schema takes text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_provider_sft.contract.schema import JSONSchema
from airflow_provider_sft.contract.wording import describe, suggest, suggest_choice

_NUMBER = re.compile(r"[+-]?([0-9]{1,400}(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_KINDS = (("boolean", bool), ("integer", int), ("number", float), ("string", str), ("object", Mapping))
_UNFIT = object()


class UnfitError(ValueError):
    """A value that its schema does not take.

    :param remedy: what to do, a sentence or two
    :param path: where in the value, `[1]`; empty for the value itself
    """

    def __init__(self, remedy: str, value: Any, path: str = "") -> None:
        super().__init__(remedy)
        self.remedy = remedy
        self.value = value
        self.path = path


def fit(value: Any, schema: JSONSchema) -> Any:
    """`value` as `schema` takes it.

    :raises UnfitError: it does not
    """
    if isinstance(value, str) and value in schema.get("x-also", {}):
        return schema["x-also"][value]
    if "anyOf" in schema:
        return _fit_any(value, schema)
    if "enum" in schema:
        return _fit_choice(value, schema)
    kinds = schema.get("type", [])
    fitted = _coerce(value, [kinds] if isinstance(kinds, str) else kinds) if kinds else value
    if fitted is _UNFIT or not _within(fitted, schema):
        raise UnfitError(_give(schema), value)
    return _fit_items(fitted, schema) if isinstance(fitted, list) else fitted


def same(left: Any, right: Any) -> bool:
    """Equality as JSON has it: true is not 1, but 1 is 1.0."""
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def _fit_any(value: Any, schema: JSONSchema) -> Any:
    """What fits as it is wins over what fits when coerced."""
    fits = list(_each_fit(value, schema["anyOf"]))
    for fitted in fits:
        if same(fitted, value):
            return fitted
    if fits:
        return fits[0]
    words = [choice for member in schema["anyOf"] for choice in member.get("enum", [])]
    near = (
        suggest(value, [word for word in words if isinstance(word, str)]) if isinstance(value, str) else None
    )
    meant = f"Did you mean {near!r}? It takes {describe(schema)}." if near else _give(schema)
    raise UnfitError(_hint(value, schema) or meant, value)


def _each_fit(value: Any, members: list[JSONSchema]) -> Iterator[Any]:
    for member in members:
        try:
            yield fit(value, member)
        except UnfitError:
            continue


def _fit_choice(value: Any, schema: JSONSchema) -> Any:
    choices: list[Any] = schema["enum"]
    for reading in _readings(value):
        for choice in choices:
            if same(reading, choice):
                return choice
    raise UnfitError(_hint(value, schema) or suggest_choice(value, choices), value)


def _hint(value: Any, schema: JSONSchema) -> str | None:
    hints: dict[str, str] = schema.get("x-value-hints", {})
    return hints.get(value) if isinstance(value, str) else None


def _readings(value: Any) -> list[Any]:
    """The value, and what else a scalar may have been meant as: true → "true", "2" → 2."""
    if isinstance(value, bool):
        return [value, str(value).lower()]
    if not isinstance(value, str):
        return [value]
    lowered = value.lower()
    numbers = [_as_number(value)] if _NUMBER.fullmatch(value) else []
    words = [_WORDS[lowered], lowered] if lowered in _WORDS else []
    return [value, *words, *numbers]


def _coerce(value: Any, kinds: list[str]) -> Any:
    if isinstance(value, list | tuple):
        return list(value) if "array" in kinds else _UNFIT
    kind = _kind_of(value)
    if kind in kinds or (kind == "integer" and "number" in kinds):
        return value
    if kind == "number" and "integer" in kinds and value.is_integer():
        return int(value)
    if kind == "string":
        return _read_text(value.strip(), kinds)
    return _UNFIT


def _read_text(text: str, kinds: list[str]) -> Any:
    if "boolean" in kinds and text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _NUMBER.fullmatch(text) and {"integer", "number"} & set(kinds):
        number = _as_number(text)
        if "number" in kinds and math.isfinite(number):
            return number
        if math.isfinite(number) and number == int(number):
            return int(number)
    return _UNFIT


def _as_number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    return next((kind for kind, python_type in _KINDS if isinstance(value, python_type)), "other")


def _within(value: Any, schema: JSONSchema) -> bool:
    """Bounds of numbers, lengths of lists, patterns of text."""
    if isinstance(value, list):
        return bool(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)))
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    return bool(
        value >= schema.get("minimum", value)
        and value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
    )


def _fit_items(values: list[Any], schema: JSONSchema) -> list[Any]:
    heads: list[JSONSchema] = schema.get("prefixItems", [])
    fitted = []
    for index, value in enumerate(values):
        try:
            fitted.append(fit(value, heads[index] if index < len(heads) else schema.get("items", {})))
        except UnfitError as error:
            raise UnfitError(error.remedy, error.value, f"[{index}]{error.path}") from None
    return fitted


def _give(schema: JSONSchema) -> str:
    """`Give a whole number of at least 1, for example 8.`"""
    described = describe(schema)
    example = schema["examples"][0] if schema.get("examples") else schema.get("default")
    if " such as " in described or example in (None, "", [], {}) or isinstance(example, bool):
        return f"Give {described}."
    return f"Give {described}, for example {json.dumps(example, ensure_ascii=False)}."
