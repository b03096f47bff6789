"""A config against the schema and the rules: every mistake at once, a sentence each. Both sides call it.

Needs the standard library alone, so that a typo costs an Airflow worker or a pod a blink.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sft.contract.codec import Config
from airflow_provider_sft.contract.errors import ConfigError, ExportError
from airflow_provider_sft.contract.export_request import find_export_obstacle
from airflow_provider_sft.contract.ineffective import find_ineffective
from airflow_provider_sft.contract.json_values import describe_not_json
from airflow_provider_sft.contract.launch_args import check_launch_args
from airflow_provider_sft.contract.moved import rename_keys
from airflow_provider_sft.contract.names import ALLOW_REMOTE_CODE_ENV_VAR
from airflow_provider_sft.contract.rules import find_contradictions
from airflow_provider_sft.contract.schema import LAUNCH_KEY, config_keys, launch_flags, load_schema
from airflow_provider_sft.contract.secrets import find_secrets
from airflow_provider_sft.contract.values import UnfitError, fit
from airflow_provider_sft.contract.wording import show, suggest


@dataclass
class Examination:
    """What a config turned out to be.

    :param config: the keys as written, values coerced by the schema; what is wrong is left out
    :param present: the same under present names
    :param mistakes: a sentence each; none: the config is right
    :param notices: a sentence each; the run goes on
    """

    config: Config = field(default_factory=dict)
    present: Config = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    # Known keys that have their sentence already: as wrong by themselves, or as what a misspelled one stands for.
    spoken_of: set[str] = field(default_factory=set)

    def refuse_wrong(self) -> None:
        """
        :raises ConfigError: with every mistake, a line each
        :raises ExportError: the export that is asked for is possible for no adapter of this kind
        """
        if self.mistakes:
            raise ConfigError("\n".join(self.mistakes))
        if obstacle := find_export_obstacle(self.present):
            raise ExportError(obstacle)


def validate_config(
    config: Mapping[str, Any], extra_keys: Collection[str] = (), *, allow_remote_code: bool | None = None
) -> Config:
    """The config with its values coerced by the schema: what travels to the trainer.

    :param extra_keys: keys of a newer image, passed through unread
    :param allow_remote_code: the leave of whoever runs the pod; None asks SFT_ALLOW_REMOTE_CODE
    :raises SFTError: as `Examination.refuse_wrong`
    """
    examination = examine_config(config, extra_keys, allow_remote_code=allow_remote_code)
    examination.refuse_wrong()
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
    found.spoken_of |= {secret.key for secret in secrets}
    unread = set(extra_keys) - config_keys().keys()
    for key, value in config.items():
        if key not in found.spoken_of:
            _take(found, key, value, unread)
    _judge_as_a_whole(
        found, unread, remote_code_allowed() if allow_remote_code is None else allow_remote_code
    )
    return found


def remote_code_allowed(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether whoever runs this process allows code that comes with a model."""
    return environ.get(ALLOW_REMOTE_CODE_ENV_VAR, "").strip().lower() in ("true", "1", "yes", "on")


def describe_unknown_key(key: str) -> str:
    """`Unknown config key 'learning_rte'. Did you mean 'learning_rate'?`"""
    if key in launch_flags() and "x-refused" not in launch_flags()[key]:
        return f"Unknown config key {show(key)}. It is a flag of accelerate: put it into {LAUNCH_KEY}."
    if near := _nearest_key(key):
        return f"Unknown config key {show(key)}. Did you mean {near!r}?"
    return f"Unknown config key {show(key)}. Remove it; `sft-config schema` lists the keys."


def _take(found: Examination, key: Any, value: Any, unread: Collection[str]) -> None:
    """`value` into `found.config` when it is right, a sentence into `found.mistakes` when not."""
    if not isinstance(key, str) or describe_not_json(key):
        found.mistakes.append(f"A config key is {show(key)}, which is no text. Name a key.")
    elif sentence := describe_not_json(value):
        found.mistakes.append(f"Config key {show(key)} {sentence}")
        found.spoken_of.add(key)
    elif key in unread:
        found.config[key] = value
    elif key not in config_keys():
        found.mistakes.append(describe_unknown_key(key))
        found.spoken_of.add(_nearest_key(key) or key)
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
        found.spoken_of.add(prop.get("x-moved-to", key))


def _judge_as_a_whole(found: Examination, unread: Collection[str], allow_remote_code: bool) -> None:
    """The rules, on present names. What has its sentence already gets no second one."""
    present = rename_keys({key: value for key, value in found.config.items() if key not in unread})
    found.present = present.config
    contradictions = [
        *_missing(present.config),
        *present.mistakes,
        *find_contradictions(present.config, allow_remote_code=allow_remote_code),
    ]
    found.mistakes += [sentence for sentence in contradictions if not _names_any(sentence, found.spoken_of)]
    found.notices += [*present.notices, *find_ineffective(present.config)]


def _missing(present: Config) -> list[str]:
    return [
        f'Config key {key!r} is missing. Add it, for example "{key}": "{config_keys()[key]["examples"][0]}".'
        for key in load_schema()["required"]
        if key not in present
    ]


def _names_any(sentence: str, keys: Collection[str]) -> bool:
    return any(re.search(rf"\b{re.escape(key)}\b", sentence) for key in keys if key in config_keys())


def _nearest_key(key: str) -> str | None:
    alias: str | None = load_schema()["x-aliases"].get(key.lower().replace("-", "_"))
    return alias or suggest(key, [name for name, prop in config_keys().items() if "x-gone" not in prop])
