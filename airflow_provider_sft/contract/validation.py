"""A config against the schema and the rules: every mistake at once, a sentence each. Both sides call it.

Needs the standard library alone, so that a typo costs an Airflow worker or a pod a blink.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sft.contract.codec import Config
from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.launch_args import check_launch_args
from airflow_provider_sft.contract.moved import rename_keys
from airflow_provider_sft.contract.names import ALLOW_REMOTE_CODE_ENV_VAR
from airflow_provider_sft.contract.rules import find_contradictions, find_ineffective
from airflow_provider_sft.contract.schema import (
    LAUNCH_KEY,
    JSONSchema,
    config_keys,
    launch_flags,
    load_schema,
)
from airflow_provider_sft.contract.secrets import find_secrets
from airflow_provider_sft.contract.values import UnfitError, fit
from airflow_provider_sft.contract.wording import show, suggest

_MAX_DEPTH = 50


@dataclass
class Examination:
    """What a config turned out to be.

    :param config: the keys as written, values coerced by the schema; what is wrong is left out
    :param mistakes: a sentence each; none: the config is right
    :param notices: a sentence each; the run goes on
    """

    config: Config = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    present: Config = field(default_factory=dict)


def validate_config(
    config: Mapping[str, Any], extra_keys: Collection[str] = (), *, allow_remote_code: bool | None = None
) -> Config:
    """The config with its values coerced by the schema: what travels to the trainer.

    :param extra_keys: keys of a newer image, passed through unread
    :param allow_remote_code: the leave of whoever runs the pod; None asks SFT_ALLOW_REMOTE_CODE
    :raises ConfigError: with every mistake, a line each
    """
    examination = examine_config(config, extra_keys, allow_remote_code=allow_remote_code)
    if examination.mistakes:
        raise ConfigError("\n".join(examination.mistakes))
    return examination.config


def check_config(
    config: Any, extra_keys: Collection[str] = (), *, allow_remote_code: bool | None = None
) -> list[str]:
    """Every mistake of `config`, whatever it is. Never raises."""
    return examine_config(config, extra_keys, allow_remote_code=allow_remote_code).mistakes


def examine_config(
    config: Any, extra_keys: Collection[str] = (), *, allow_remote_code: bool | None = None
) -> Examination:
    """Mistakes, notices and the coerced values of `config`. Never raises."""
    found = Examination()
    if not isinstance(config, Mapping):
        found.mistakes.append(f"The config is {show(config)}. Give one JSON object of keys and values.")
        return found
    secrets = find_secrets(config)
    found.mistakes += [secret.sentence for secret in secrets]
    hidden = {secret.key for secret in secrets}
    for key, value in config.items():
        if key not in hidden:
            _take(found, key, value, extra_keys)
    found.mistakes += _missing(config)
    _judge_as_a_whole(found, config, extra_keys, allow_remote_code)
    return found


def remote_code_allowed(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether whoever runs this process allows code that comes with a model."""
    return environ.get(ALLOW_REMOTE_CODE_ENV_VAR, "").strip().lower() in ("true", "1", "yes", "on")


def _take(found: Examination, key: Any, value: Any, extra_keys: Collection[str]) -> None:
    """`value` into `found.config` when it is right, a sentence into `found.mistakes` when not."""
    if not isinstance(key, str):
        found.mistakes.append(f"Config key {show(key)} is no text. Put it in quotes.")
        return
    if sentence := next(_not_json(value, f"Config key {key!r}", 0), None):
        found.mistakes.append(sentence)
    elif key in extra_keys and key not in config_keys():
        found.config[key] = value
    elif key not in config_keys():
        found.mistakes.append(_unknown(key))
    elif key == LAUNCH_KEY:
        found.config[key] = check_launch_args(value, found.mistakes)
    else:
        _take_known(found, key, value)


def _take_known(found: Examination, key: str, value: Any) -> None:
    prop = config_keys()[key]
    try:
        found.config[key] = fit(value, prop)
    except UnfitError as error:
        remedy = prop.get("x-gone") or error.remedy
        found.mistakes.append(f"Config key '{key}{error.path}' is {show(error.value)}. {remedy}")


def _missing(config: Mapping[Any, Any]) -> Iterator[str]:
    for key in load_schema()["required"]:
        if config.get(key) is None and key not in config:
            example = config_keys()[key]["examples"][0]
            yield f'Config key {key!r} is missing. Add it, for example "{key}": "{example}".'


def _judge_as_a_whole(
    found: Examination, config: Mapping[Any, Any], extra_keys: Collection[str], allow: bool | None
) -> None:
    """The rules, on present names. A key that is wrong by itself counts as given: one mistake, one sentence."""
    present = rename_keys({key: value for key, value in found.config.items() if key not in extra_keys})
    found.present = present.config
    found.mistakes += present.mistakes
    wrong = {key for key in config if isinstance(key, str) and key not in found.config}
    allow = remote_code_allowed() if allow is None else allow
    contradictions = find_contradictions(present.config, allow_remote_code=allow)
    found.mistakes += [
        sentence for sentence in contradictions if not any(f"{key!r} is missing" in sentence for key in wrong)
    ]
    found.notices += present.notices + find_ineffective(present.config)


def _unknown(key: str) -> str:
    if key in launch_flags() and "x-refused" not in launch_flags()[key]:
        return f"Unknown config key {key!r}. It is a flag of accelerate: put it into {LAUNCH_KEY}."
    near = load_schema()["x-aliases"].get(key.lower().replace("-", "_")) or suggest(key, _suggestable())
    if near:
        return f"Unknown config key {key!r}. Did you mean {near!r}?"
    return f"Unknown config key {key!r}. Remove it; `sft-config schema` lists the keys."


def _suggestable() -> list[str]:
    return [name for name, prop in config_keys().items() if "x-gone" not in prop]


def _not_json(value: Any, name: str, depth: int) -> Iterator[str]:
    """What JSON cannot hold: NaN, infinities, half characters, Python's own types, endless nesting."""
    if depth > _MAX_DEPTH:
        yield f"{name} is nested too deeply. Give a flat value."
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{name} is {value}. Give a finite number."
    elif isinstance(value, str):
        yield from _broken_text(value, name)
    elif isinstance(value, Mapping):
        for key, member in value.items():
            if not isinstance(key, str):
                yield f"{name} has the key {show(key)}, which is no text. Put it in quotes."
            yield from _not_json(member, name, depth + 1)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _not_json(member, name, depth + 1)
    elif value is not None and not isinstance(value, bool | int | float):
        yield f"{name} is a {type(value).__name__}, which JSON cannot hold. Give text, a number, true, false or a list."


def _broken_text(value: str, name: str) -> Iterator[str]:
    try:
        value.encode()
    except UnicodeEncodeError:
        yield f"{name} holds half of a surrogate pair, which is no character. Write the whole character."


def schema_of(key: str) -> JSONSchema | None:
    """What the schema says about one key."""
    return config_keys().get(key)
