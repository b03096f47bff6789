"""Keys under their present names. Former names keep working and say once what they are called now."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sft.contract.codec import Config
from airflow_provider_sft.contract.schema import JSONSchema, config_keys
from airflow_provider_sft.contract.values import same
from airflow_provider_sft.contract.wording import show

_ATTENTION = "attn_implementation"


@dataclass
class PresentConfig:
    """A config under present names; what was said about it on the way."""

    config: Config = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    _written_as: dict[str, str] = field(default_factory=dict)

    def take(self, written: str, name: str, value: Any) -> None:
        """`value` for `name`, which the config spells `written`."""
        if name in self.config and not same(self.config[name], value):
            other = self._written_as[name]
            self.mistakes.append(
                f"Config keys {other!r} ({show(self.config[name])}) and {written!r} ({show(value)}) are the same "
                f"thing. Keep {name!r}."
            )
            return
        self.config[name] = value
        self._written_as[name] = written


def rename_keys(config: Config) -> PresentConfig:
    """:param config: of known keys, coerced by the schema"""
    present = PresentConfig()
    keys = config_keys()
    former = {key: keys[key] for key in config if "x-moved-to" in keys.get(key, {})}
    for key, value in config.items():
        if key in former:
            continue
        if sentence := keys.get(key, {}).get("x-gone"):
            present.notices.append(f"Config key {key!r} is ignored: {sentence}")
        else:
            present.take(key, key, value)
    for key, prop in former.items():
        _move(key, config, prop, present)
    return present


def _move(key: str, config: Config, prop: JSONSchema, present: PresentConfig) -> None:
    name, value = prop["x-moved-to"], config[key]
    if "x-moved-values" in prop:
        value = prop["x-moved-values"][str(value).lower()]
        now = (
            f'is now written "{name}": "{value}".'
            if value
            else f"belongs to {name!r} now, and changes nothing."
        )
    else:
        now = f"is now called {name!r}."
    present.notices.append(f"Config key {key!r} {now}")
    if value is not None and not _yields(key, config, present):
        present.take(key, name, value)


def _yields(key: str, config: Config, present: PresentConfig) -> bool:
    """Where the peer lets another key win over a former name instead of minding both."""
    if key == "warmup_ratio":
        if not present.config.get("warmup_steps"):
            present.config.pop("warmup_steps", None)
        return "warmup_steps" in present.config
    if key == "use_flash_attn":
        return bool(config[key]) and bool(config.get("flash_attn_implementation"))
    return key == "flash_attn_implementation" and config.get("use_flash_attn") is False
