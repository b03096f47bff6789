"""One value against its schema: taken as it is, coerced, or refused with what was expected.

Coerced is only what a template or YAML made of a value: "4" and "1e-5" where a number belongs, "true" where a
boolean belongs, 5.0 for a whole number. Text stays text wherever the schema takes text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from airflow_provider_sft.contract.schema import JSONSchema
from airflow_provider_sft.contract.wording import describe, show, suggest_choice

_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_MISSING = object()


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
    if "anyOf" in schema:
        return _fit_any(value, schema)
    if "enum" in schema:
        return _fit_choice(value, schema)
    kinds = schema.get("type")
    if kinds is None:
        return value
    coerced = _coerce(value, [kinds] if isinstance(kinds, str) else kinds)
    if coerced is _MISSING:
        raise UnfitError(_give(schema), value)
    _check_bounds(coerced, schema)
    return _fit_items(coerced, schema) if isinstance(coerced, list) else coerced


def same(left: Any, right: Any) -> bool:
    """Equality as JSON has it: true is not 1, but 1 is 1.0."""
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def _fit_any(value: Any, schema: JSONSchema) -> Any:
    for member in schema["anyOf"]:  # an exact fit wins over a coercion
        try:
            if same(fitted := fit(value, member), value):
                return fitted
        except UnfitError:
            continue
    for member in schema["anyOf"]:
        try:
            return fit(value, member)
        except UnfitError:
            continue
    raise UnfitError(_give(schema), value)


def _fit_choice(value: Any, schema: JSONSchema) -> Any:
    choices: list[Any] = schema["enum"]
    for candidate in (
        value,
        schema.get("x-also", {}).get(value) if isinstance(value, str) else None,
        *_readings(value),
    ):
        for choice in choices:
            if candidate is not None and same(candidate, choice):
                return choice
    if value is None and None in choices:
        return None
    hint = schema.get("x-value-hints", {}).get(value) if isinstance(value, str) else None
    raise UnfitError(hint or suggest_choice(value, choices) or f"Give {describe(schema)}.", value)


def _readings(value: Any) -> list[Any]:
    """What else a scalar may have been meant as: True → "true", "2" → 2."""
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, int | float):
        return [str(value)]
    if not isinstance(value, str):
        return []
    words = [_WORDS[value.lower()]] if value.lower() in _WORDS else []
    return [
        *words,
        *([_as_number(value)] if _NUMBER.fullmatch(value) else []),
        value.lower() if words else None,
    ]


def _coerce(value: Any, kinds: list[str]) -> Any:
    if isinstance(value, tuple):
        value = list(value)
    kind = _kind_of(value)
    if kind in kinds:
        return dict(value) if kind == "object" else value
    if kind == "integer" and "number" in kinds:
        return value
    if kind == "number" and "integer" in kinds and value.is_integer():
        return int(value)
    if kind == "string" and "string" not in kinds:
        return _read_text(value.strip(), kinds)
    return _MISSING


def _read_text(text: str, kinds: list[str]) -> Any:
    if "boolean" in kinds and text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if ("integer" in kinds or "number" in kinds) and _NUMBER.fullmatch(text):
        number = _as_number(text)
        if math.isfinite(number) and ("number" in kinds or number == int(number)):
            return number if "number" in kinds else int(number)
    return _MISSING


def _as_number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    for kind, types in (
        ("integer", int),
        ("number", float),
        ("string", str),
        ("array", list),
        ("object", Mapping),
    ):
        if isinstance(value, types):
            return kind
    return "other"


def _check_bounds(value: Any, schema: JSONSchema) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not (
        schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
        and (value > schema.get("exclusiveMinimum", -math.inf) or "exclusiveMinimum" not in schema)
        and (value < schema.get("exclusiveMaximum", math.inf) or "exclusiveMaximum" not in schema)
    ):
        raise UnfitError(_give(schema), value)


def _fit_items(values: list[Any], schema: JSONSchema) -> list[Any]:
    heads: list[JSONSchema] = schema.get("prefixItems", [])
    if len(values) > schema.get("maxItems", len(values)) or len(values) < schema.get("minItems", 0):
        raise UnfitError(_give(schema), values)
    fitted = []
    for index, value in enumerate(values):
        item_schema = heads[index] if index < len(heads) else schema.get("items", {})
        try:
            fitted.append(fit(value, item_schema))
        except UnfitError as error:
            raise UnfitError(error.remedy, error.value, f"[{index}]{error.path}") from None
    return fitted


def _give(schema: JSONSchema) -> str:
    """`Give a whole number of at least 1, for example 8.`"""
    example = schema["examples"][0] if schema.get("examples") else schema.get("default")
    shown = f", for example {_json(example)}" if example not in (None, "", [], {}) else ""
    described = describe(schema)
    return f"Give {described}{shown}." if "such as" not in described else f"Give {described}."


def _json(value: Any) -> str:
    return show(value) if not isinstance(value, str) else '"' + repr(value)[1:-1] + '"'
