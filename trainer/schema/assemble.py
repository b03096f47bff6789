"""One JSON schema of every config key, from the installed releases and our own tables."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import typing
from typing import Any

from trainer.schema import tables
from trainer.schema.annotations import JSONSchema, default_of, merge, nullable, schema_of
from trainer.schema.flags import launch_schema
from trainer.schema.keys import OUR_KEYS
from trainer.schema.paths import FLAG_PATHS, OTHERWISE, PATHS
from trainer.schema.text import first_sentences

_SOURCES = ("trl", "transformers", "peft", "accelerate")


def assemble_schema() -> JSONSchema:
    """Imports trl, peft and accelerate: about 8 CPU seconds."""
    from accelerate.commands.launch import launch_command_parser
    from peft import LoraConfig
    from trl import SFTConfig

    properties = _upstream_properties(SFTConfig, section="training")
    properties |= _upstream_properties(LoraConfig, section="peft")
    for section in OUR_KEYS:
        properties |= _our_properties(section)
    properties["accelerate_launch_args"] = {
        **launch_schema(launch_command_parser()),
        "x-section": "launch",
        "x-group": "Launch",
    }
    _mark_paths(properties, PATHS)
    _mark_paths(properties["accelerate_launch_args"]["properties"], FLAG_PATHS)
    properties |= {name: _moved_property(name, properties) for name in (*tables.MOVED, *tables.MOVED_VALUES)}
    properties |= {name: _gone_property(name) for name in tables.GONE}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The config of a tuning run",
        "type": "object",
        "required": ["model_name_or_path", "output_dir"],
        "additionalProperties": False,
        "properties": properties,
        "x-generated-by": "python -m trainer.schema",
        "x-releases": {name: importlib.metadata.version(name) for name in _SOURCES},
        "x-aliases": tables.ALIASES,
    }


def dump_schema(schema: JSONSchema) -> str:
    return json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _upstream_properties(config_class: type, *, section: str) -> dict[str, JSONSchema]:
    hints = typing.get_type_hints(config_class)
    return {
        field.name: {
            **_property(field, hints[field.name], tables.CHANGES.get(field.name, {})),
            "x-section": section,
            "x-group": "LoRA" if section == "peft" else _group_of(field.name),
        }
        for field in dataclasses.fields(config_class)
        if field.init and field.name not in tables.GONE
    }


def _our_properties(config_class: Any) -> dict[str, JSONSchema]:
    hints = typing.get_type_hints(config_class)
    return {
        field.name: {
            **_property(field, hints[field.name], field.metadata["schema"]),
            "x-section": config_class.SECTION,
            "x-group": config_class.__doc__,
        }
        for field in dataclasses.fields(config_class)
    }


def _property(field: dataclasses.Field[Any], annotation: Any, changes: dict[str, Any]) -> JSONSchema:
    prop = schema_of(annotation)
    if choices := field.metadata.get("choices"):
        prop = {"enum": [*choices, *([None] if nullable(prop) else [])]}
    prop["description"] = first_sentences(str(field.metadata.get("help", "")))
    prop["default"] = default_of(field)
    prop = merge(prop, changes)
    if prop["default"] is None and not nullable(prop):
        del prop["default"]
    if prop.get("default") != default_of(field):
        prop["x-upstream-default"] = default_of(field)
    return prop


def _mark_paths(properties: dict[str, JSONSchema], uses: dict[str, str]) -> None:
    for name, use in uses.items():
        properties[name]["x-path"] = use
        if name in OTHERWISE:
            properties[name]["x-path-or"] = OTHERWISE[name]


def _group_of(name: str) -> str:
    for group, names in tables.GROUPS.items():
        if name in names:
            return group
    for prefix, group in tables.PREFIX_GROUPS.items():
        if name.startswith(prefix):
            return group
    return "Training"


def _moved_property(name: str, properties: dict[str, JSONSchema]) -> JSONSchema:
    if name in tables.MOVED_VALUES:
        target, values = tables.MOVED_VALUES[name]
        return {
            "type": "boolean",
            "description": f"The former name of {target}.",
            "x-moved-to": target,
            "x-moved-values": values,
            "x-section": properties[target]["x-section"],
            "x-group": properties[target]["x-group"],
        }
    target = tables.MOVED[name]
    kept = {
        k: v for k, v in properties[target].items() if k not in ("default", "x-upstream-default", "examples")
    }
    prop = merge(kept, tables.MOVED_CHANGES.get(name, {}))
    return {**prop, "description": f"The former name of {target}.", "x-moved-to": target}


def _gone_property(name: str) -> JSONSchema:
    harmless, sentence = tables.GONE[name]
    prop: JSONSchema = {"description": sentence, "x-gone": sentence}
    if harmless is not None:
        prop["enum"] = harmless
    return prop
