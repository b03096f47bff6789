"""The shipped schema of the config, and what its `x-` keywords say about a key.

config_schema.json is generated (`python -m trainer.schema`). Besides JSON schema's own keywords a key has
`x-section` (which part of the trainer reads it: training is trl.SFTConfig, peft is peft.LoraConfig and its kin),
`x-group` (its heading in the docs), `x-upstream-default` (where ours differs), `x-moved-to` and `x-moved-values` (for a
former name), `x-gone` (nothing reads it; its `enum` holds the values that never mattered), `x-extra` and
`x-extra-values` (the optional dependency of a key or value), `x-also` (other spellings of a value) and
`x-value-hints` (a sentence for a wrong value). Flags have `x-kind` and `x-refused`, their object `x-short`.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

JSONSchema = dict[str, Any]
LAUNCH_KEY = "accelerate_launch_args"


@cache
def load_schema() -> JSONSchema:
    """Read once a process; treat it as read-only."""
    text = resources.files(__package__).joinpath("config_schema.json").read_text(encoding="utf-8")
    schema: JSONSchema = json.loads(text)
    return schema


def config_keys() -> dict[str, JSONSchema]:
    """Every key the config takes, former names included."""
    keys: dict[str, JSONSchema] = load_schema()["properties"]
    return keys


def launch_flags() -> dict[str, JSONSchema]:
    """Every key that accelerate_launch_args takes, the refused ones included."""
    flags: dict[str, JSONSchema] = config_keys()[LAUNCH_KEY]["properties"]
    return flags
