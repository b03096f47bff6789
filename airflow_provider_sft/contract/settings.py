"""A right config as the trainer reads it: present names, and a value for every key."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_sft.contract.codec import Config
from airflow_provider_sft.contract.json_values import read_object_text
from airflow_provider_sft.contract.schema import LAUNCH_KEY, JSONSchema, config_keys, launch_flags
from airflow_provider_sft.contract.validation import examine_config

# The sections that become arguments of another package's dataclass.
_UPSTREAM_SECTIONS = ("training", "peft")
_NAMES = re.compile(r"\s*[\w.]+\s*(,\s*[\w.]+\s*)*")
# What null means for these keys.
_NONE_MEANS = {"peft_method": "none", "quantization_method": "none"}


@dataclass(frozen=True)
class Settings:
    """
    :param values: every key under its present name: what the config says, else the default (null where there is none)
    :param given: the keys that the config says
    :param notices: a sentence for each key with a former name, or written to no effect
    """

    values: Mapping[str, Any]
    given: frozenset[str]
    notices: tuple[str, ...]

    def section(self, name: str) -> dict[str, Any]:
        """The keys of one section (`training`, `peft`, `model`, …), as arguments of what reads them.

        Without those that the config leaves to upstream's own default: `LoraConfig(**section)` stays right when a
        release adds a field.
        """
        return {
            key: self.values[key]
            for key, prop in config_keys().items()
            if prop.get("x-section") == name
            and key in self.values
            and (key in self.given or name not in _UPSTREAM_SECTIONS or _differs_from_upstream(prop))
        }


def resolve_config(
    config: Mapping[str, Any], extra_keys: Collection[str] = (), *, allow_remote_code: bool | None = None
) -> Settings:
    """:raises SFTError: as `Examination.refuse_wrong`"""
    examination = examine_config(config, extra_keys, allow_remote_code=allow_remote_code)
    examination.refuse_wrong()
    given = _plain_values(examination.present)
    defaults = {
        key: copy.deepcopy(prop.get("default"))
        for key, prop in config_keys().items()
        if "x-moved-to" not in prop and "x-gone" not in prop
    }
    defaults[LAUNCH_KEY] = {}
    return Settings(
        values={**defaults, **given},
        given=frozenset(given),
        notices=tuple(dict.fromkeys(examination.notices)),
    )


def _differs_from_upstream(prop: JSONSchema) -> bool:
    return "x-upstream-default" in prop and prop.get("default") is not None


def _plain_values(present: Config) -> Config:
    """The peer's spellings of a value in the plain one: `["huggingface"]` is true."""
    values: Config = {key: _NONE_MEANS.get(key) if value is None else value for key, value in present.items()}
    values = {key: read_object_text(value) if _takes_object(key) else value for key, value in values.items()}
    if isinstance(values.get("padding_free"), list | str):
        values["padding_free"] = True
    if "target_modules" in values:
        values["target_modules"] = _as_module_names(values["target_modules"])
    if "trackers" in values:
        values["trackers"] = [name for name in values["trackers"] or [] if name != "hf_resource_scanner"]
    for key, value in values.items():
        if isinstance(value, str) and value.startswith("~/") and "x-path" in config_keys()[key]:
            values[key] = os.path.expanduser(value)  # noqa: PTH111  # a Path would shorten `~/model/`
    if LAUNCH_KEY in values:
        values[LAUNCH_KEY] = {name: _as_argument(name, value) for name, value in values[LAUNCH_KEY].items()}
    return values


def _as_module_names(targets: Any) -> Any:
    """`"q_proj, v_proj"` as a list: no module's name has a comma, so as a regular expression it would match none."""
    if isinstance(targets, str) and _NAMES.fullmatch(targets):
        return [name.strip() for name in targets.split(",")]
    return targets


def _takes_object(key: str) -> bool:
    prop = config_keys()[key]
    return any("object" in member.get("type", ()) for member in prop.get("anyOf", [prop]))


def _as_argument(flag: str, value: Any) -> Any:
    """For argparse's `type=bool` every text is true but the empty one."""
    if launch_flags()[flag].get("x-kind") == "truthy":
        return "true" if value else ""
    return value
