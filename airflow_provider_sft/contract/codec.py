"""The config on its way from Airflow to the pod: base64 of UTF-8 JSON in one environment variable, or a file."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from airflow_provider_sft.contract.errors import AccessDeniedError, ConfigError, NotFoundError
from airflow_provider_sft.contract.names import CONFIG_ENV_VAR, CONFIG_PATH_ENV_VAR

Config = dict[str, Any]


def encode_config(config: Mapping[str, Any]) -> str:
    """What goes into SFT_TRAINER_CONFIG_JSON_ENV_VAR. NaN and Infinity are no JSON and raise ValueError."""
    return encode_text(dump_config(config))


def dump_config(config: Mapping[str, Any]) -> str:
    """The JSON text that travels: as it is in a file, in base64 in the environment variable."""
    return json.dumps(config, ensure_ascii=False, allow_nan=False)


def encode_text(json_text: str) -> str:
    return base64.b64encode(json_text.encode()).decode("ascii")


def decode_text(encoded: str) -> str:
    """The JSON text inside. Line breaks in the base64 are passed over: `base64 config.json` makes them.

    :raises ConfigError: not standard base64, or not UTF-8 inside
    """
    compact = "".join(encoded.split())
    try:
        return base64.b64decode(compact, validate=True).decode("utf-8")
    except ValueError as error:
        raise ConfigError(
            f"{CONFIG_ENV_VAR} is not base64 of UTF-8 JSON: {_why_not(compact, error)}. "
            f"Encode it with `sft-config encode FILE`."
        ) from None


def read_config(environ: Mapping[str, str]) -> Config:
    """The config of this process: the environment variable wins over the file, as in fms-hf-tuning.

    :raises ConfigError: neither is set, or what is there is no JSON object
    :raises NotFoundError: the file does not exist
    :raises AccessDeniedError: the file cannot be read
    """
    if encoded := environ.get(CONFIG_ENV_VAR):
        return parse_config(decode_text(encoded), source=CONFIG_ENV_VAR)
    if path := environ.get(CONFIG_PATH_ENV_VAR):
        return read_config_file(Path(path))
    raise ConfigError(
        f"Neither {CONFIG_ENV_VAR} nor {CONFIG_PATH_ENV_VAR} is set. "
        f"Set one of them: the config in base64, or the path of a JSON file."
    )


def read_config_file(path: Path) -> Config:
    return parse_config(read_text_file(path), source=str(path))


def read_text_file(path: Path) -> str:
    """
    :raises ConfigError: it is a directory, or not UTF-8
    :raises NotFoundError: it does not exist
    :raises AccessDeniedError: it cannot be read
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 ({error}). Save it as UTF-8.") from error
    except PermissionError as error:
        raise AccessDeniedError(f"{path} cannot be read by this user. Give it read permission.") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"{path} does not exist. Mount the config there, or correct the path.") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a directory. Name the JSON file in it.") from error


def parse_config(text: str, *, source: str = "The config") -> Config:
    """Strict JSON: one object, no NaN, no Infinity, no key twice.

    :param source: named in the message
    :raises ConfigError: anything else
    """
    try:
        config = json.loads(
            text.removeprefix("\ufeff"),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{source} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}. Correct it there."
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{source} is nested too deeply. A config is one flat JSON object.") from error
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(
            f"{source} holds a JSON {_json_type(config)}. Give one JSON object of keys and values."
        )
    return config


def _unique_keys(pairs: list[tuple[str, Any]]) -> Config:
    config: Config = {}
    for key, value in pairs:
        if key in config:
            raise ValueError(f"config key {key!r} appears twice. Keep one of them.")
        config[key] = value
    return config


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number. Give a finite number.")


def _finite(digits: str) -> float:
    """JSON's grammar allows 1e999, which Python reads as infinity."""
    if math.isinf(number := float(digits)):
        raise ValueError(f"{digits} is beyond what a number can hold. Give a finite number.")
    return number


def _why_not(compact: str, error: ValueError) -> str:
    """In words; the text itself may be secret and is not shown."""
    if isinstance(error, UnicodeDecodeError):
        return f"the bytes inside are not UTF-8 (byte {error.start + 1})"
    if compact.startswith(("{", "[")):
        return "it is plain text"
    if "-" in compact or "_" in compact:
        return "it holds '-' or '_', as url-safe base64 does"
    return "it holds other characters, or was cut"


def _json_type(value: object) -> str:
    names = {list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
