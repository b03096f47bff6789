"""What one config key is, for people: `sft-config schema KEY`, and the rows of docs/config.md."""

from __future__ import annotations

import json

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.launch_args import describe_unknown_flag
from airflow_provider_sft.contract.schema import LAUNCH_KEY, JSONSchema, config_keys, launch_flags
from airflow_provider_sft.contract.validation import describe_unknown_key
from airflow_provider_sft.contract.wording import describe


def explain_key(key: str) -> str:
    """
    :param key: a config key, or `accelerate_launch_args.FLAG`
    :raises ConfigError: there is none of that name
    """
    if key == LAUNCH_KEY:
        return "\n".join([f"{LAUNCH_KEY}: {config_keys()[key]['description']}", *_list_flags()])
    if key.startswith(f"{LAUNCH_KEY}."):
        flag = key.removeprefix(f"{LAUNCH_KEY}.")
        if sentence := describe_unknown_flag(flag):
            raise ConfigError(sentence)
        return f"{key}\n{_indent(explain(launch_flags()[flag]))}"
    if key not in config_keys():
        raise ConfigError(describe_unknown_key(key))
    return f"{key}\n{_indent(explain(config_keys()[key]))}"


def explain(prop: JSONSchema) -> list[str]:
    """Meaning, what it takes, what an omitted key means, what it needs: a line each."""
    if "x-gone" in prop:
        return [f"Nothing reads it. {prop['x-gone']}"]
    lines = [prop["description"], f"Takes {describe(prop)}."]
    if "x-moved-to" in prop:
        return [f"It is now called {prop['x-moved-to']}.", lines[1]]
    if "default" in prop:
        lines.append(f"Default: {json.dumps(prop['default'], ensure_ascii=False)}")
    lines += [f"Needs the extra {extra!r}." for extra in [prop.get("x-extra")] if extra]
    return lines


def _list_flags() -> list[str]:
    return [
        f"  {name}: {prop['description']}" for name, prop in launch_flags().items() if "x-refused" not in prop
    ]


def _indent(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
