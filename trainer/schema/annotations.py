"""From a Python annotation to JSON schema, as far as config dataclasses go. Types that JSON cannot hold become objects."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

JSONSchema = dict[str, Any]

_SIMPLE: dict[Any, str] = {
    int: "integer",
    float: "number",
    bool: "boolean",
    str: "string",
    dict: "object",
    list: "array",
    type(None): "null",
}
# A string beside one of these in a union is the same thing as JSON text, or an enum's value.
_MEMBER_ORDER = ("boolean", "integer", "number", "string", "array", "object", "null")


def schema_of(annotation: Any) -> JSONSchema:
    """`int | None` → {"type": ["integer", "null"]}"""
    if annotation in _SIMPLE:
        return {"type": _SIMPLE[annotation]}
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return _union([schema_of(member) for member in _members(annotation)])
    if origin is Literal:
        return _choices(arguments)
    if origin in (list, tuple):
        return {"type": "array", "items": schema_of(arguments[0])} if origin is list else {"type": "array"}
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return {"enum": [member.value for member in annotation]}
    return {"type": "object"}  # dict[...], and the dataclasses that peft nests


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default as JSON; None where there is none or JSON cannot hold it."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        value = None if field.default is dataclasses.MISSING else field.default
    if isinstance(value, enum.Enum):
        return value.value
    return value if isinstance(value, str | int | float | bool | list | dict) else None


def nullable(schema: JSONSchema) -> bool:
    kinds = schema.get("type", [])
    return (
        "null" in ([kinds] if isinstance(kinds, str) else kinds)
        or None in schema.get("enum", [])
        or any(nullable(member) for member in schema.get("anyOf", []))
    )


def _members(annotation: Any) -> list[Any]:
    """The union's members; `SchedulerType | str` is the enum alone, since its values are the strings allowed."""
    members = list(typing.get_args(annotation))
    if any(isinstance(member, type) and issubclass(member, enum.Enum) for member in members):
        members = [member for member in members if member is not str]
    return members


def _choices(values: tuple[Any, ...]) -> JSONSchema:
    """Peft writes a pattern among its literals: `pissa_niter_[number of iters]`"""
    patterns = [value for value in values if isinstance(value, str) and "[" in value]
    choices: JSONSchema = {"enum": [value for value in values if value not in patterns]}
    if not patterns:
        return choices
    stems = [pattern.partition("[")[0] for pattern in patterns]
    texts = [{"type": "string", "pattern": f"^{stem}[0-9]+$", "examples": [f"{stem}16"]} for stem in stems]
    return {"anyOf": [choices, *texts]}


def _union(members: list[JSONSchema]) -> JSONSchema:
    """Members that are plain types, one array among them, share one `type`; with choices in it, an `anyOf`."""
    if all("enum" in member or member == {"type": "null"} for member in members):
        values = [value for member in members for value in member.get("enum", [None])]
        return {"enum": values}
    if any({"enum", "anyOf"} & member.keys() for member in members):
        return {"anyOf": [part for member in members for part in member.get("anyOf", [member])]}
    kinds = {member["type"] for member in members if "type" in member}
    merged: JSONSchema = {"type": [kind for kind in _MEMBER_ORDER if kind in kinds]}
    for member in members:
        merged.update({name: value for name, value in member.items() if name != "type"})
    return merged


def merge(schema: JSONSchema, changes: Mapping[str, Any]) -> JSONSchema:
    """`changes` over `schema`; a new type, choice list or anyOf replaces what was there."""
    kept = dict(schema)
    if {"type", "enum", "anyOf"} & changes.keys():
        kept = {name: value for name, value in kept.items() if name not in ("type", "enum", "anyOf", "items")}
    return {**kept, **changes}
