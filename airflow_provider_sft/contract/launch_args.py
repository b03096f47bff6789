"""`accelerate_launch_args`: long flags alone, and none that would run other code than the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_sft.contract.schema import LAUNCH_KEY, config_keys, launch_flags
from airflow_provider_sft.contract.values import UnfitError, fit
from airflow_provider_sft.contract.wording import show, suggest


def check_launch_args(args: Any, mistakes: list[str]) -> dict[str, Any]:
    """The flags that are right, coerced; null ones are as if not there.

    :param mistakes: gets a sentence for each that is wrong
    """
    if args is None:
        return {}
    if not isinstance(args, Mapping):
        mistakes.append(
            f"Config key {LAUNCH_KEY!r} is {show(args)}. Give an object of accelerate's long flags, "
            f'for example {{"main_process_port": 1234}}.'
        )
        return {}
    fitted: dict[str, Any] = {}
    for name, value in args.items():
        if sentence := describe_unknown_flag(str(name)):
            mistakes.append(sentence)
        elif value is not None:
            _fit_flag(str(name), value, fitted, mistakes)
    return fitted


def describe_unknown_flag(name: str) -> str | None:
    """Why `name` is no flag that a config may have; None when it is one."""
    flags = launch_flags()
    short: dict[str, str] = config_keys()[LAUNCH_KEY]["x-short"]
    plain = name.lstrip("-").replace("-", "_")
    long = short.get(name.lstrip("-"), name)
    if refusal := flags.get(long, {}).get("x-refused"):
        return f"{LAUNCH_KEY} key {name!r} is not allowed. {refusal}"
    if name in flags:
        return None
    if long != name:
        return f"{LAUNCH_KEY} key {name!r} is a short flag. Use the long name {long!r}."
    if plain in flags:
        return f"{LAUNCH_KEY} key {name!r} is not spelled as in JSON. Use {plain!r}."
    if plain in config_keys():
        return f"{LAUNCH_KEY} key {name!r} is no flag of accelerate. Put it one level up, into the config."
    near = suggest(name, [flag for flag, prop in flags.items() if "x-refused" not in prop])
    hint = (
        f"Did you mean {near!r}?"
        if near
        else "Remove it; `sft-config schema accelerate_launch_args` lists them."
    )
    return f"Unknown {LAUNCH_KEY} key {show(name)}. {hint}"


def _fit_flag(name: str, value: Any, fitted: dict[str, Any], mistakes: list[str]) -> None:
    try:
        fitted[name] = fit(value, launch_flags()[name])
    except UnfitError as error:
        mistakes.append(f"{LAUNCH_KEY}.{name}{error.path} is {show(error.value)}. {error.remedy}")
