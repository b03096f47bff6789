# ruff: noqa: A005  (absolute imports alone: nothing here shadows the standard library's module)
"""Secrets in a config, told by the name of their key and by the prefixes that services give them, never by entropy.

A config is printed: in Airflow's Rendered Templates, in the pod's manifest, in the report. Secrets travel as
environment variables from a Secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_sft.contract.json_values import read_object_text

HIDDEN = "***"
_MAX_DEPTH = 32

_SECRET_NAME = re.compile(
    r"(^|_)(token|password|passwd|passphrase|secret|credential|credentials|key|apikey)$", re.IGNORECASE
)
# What stands before `_token` and `_key` in names that hold no secret.
_PLAIN_NAME = re.compile(
    r"^((eos|bos|pad|unk|cls|sep|mask|image|audio|video|special|start|end|stop|begin|prefix|suffix|middle|separator"
    r"|response|instruction|invocation|boi|eoi|eot|im_start|im_end|extra)_token"
    r"|(sort|primary|foreign|column|text|image|label|message|messages|prompt|completion|input|output|data|dataset"
    r"|map|row|group|partition|config|metric|state_dict)_key|key)$",
    re.IGNORECASE,
)
_TOKENIZER_TOKEN = re.compile(r"[<\[{|(].*[>\]}|)]", re.DOTALL)  # <|im_end|>, [PAD], </s>

_STARTS = r"(?<![A-Za-z0-9_/.\-])"  # not in the middle of a word or a path
_SECRET_VALUE = re.compile(
    "|".join(
        (
            rf"{_STARTS}hf_[A-Za-z0-9]{{30,}}",
            rf"{_STARTS}gh[pousr]_[A-Za-z0-9]{{36,}}",
            rf"{_STARTS}github_pat_[A-Za-z0-9_]{{22,}}",
            rf"{_STARTS}glpat-[A-Za-z0-9_\-]{{20,}}",
            rf"{_STARTS}sk-(proj-|ant-[a-z0-9]+-|or-v1-)?[A-Za-z0-9]{{20,}}",
            rf"{_STARTS}xox[abprs]-[A-Za-z0-9\-]{{10,}}",
            rf"{_STARTS}(AKIA|ASIA)[A-Z0-9]{{16}}(?![A-Za-z0-9])",
            rf"{_STARTS}AIza[A-Za-z0-9_\-]{{35}}",
            rf"{_STARTS}ya29\.[A-Za-z0-9_\-]{{20,}}",
            rf"{_STARTS}nvapi-[A-Za-z0-9_\-]{{20,}}",
            rf"{_STARTS}(dckr_pat_|npm_|pypi-)[A-Za-z0-9_\-]{{20,}}",
            rf"{_STARTS}eyJ[A-Za-z0-9_\-]{{10,}}\.eyJ[A-Za-z0-9_\-]{{10,}}\.",  # a JSON web token
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
            r"AccountKey=[A-Za-z0-9+/=]{20,}",
            r"[A-Za-z][A-Za-z0-9+.\-]{0,20}://[^/\s:@]*:[^/\s:@{$][^/\s@]*@",  # user:password@host
        )
    )
)

# Parameters of a URL by which a service grants access: tokens, signatures (S3, GCS, CloudFront, Azure's SAS), keys.
_PARAMETER = re.compile(
    r"([?&;]|%3f|%26)([\w.\-]{0,40}(?:token|sig|signature|secret|passw(?:or)?d|passphrase|pwd|key|key-?id|credentials?|auth"
    r"|authorization|sas|jwt|session)[\w.\-]{0,20})(=|%3d)((?:(?!%26)[^&\s'\"<>#;])+)",
    re.IGNORECASE,
)
# All before the host: a token alone, or user and password.
_USER_INFO = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.\-]{0,20}://)[^/\s?#'\"<>]*@(?=[^\s@])")
_AUTHORIZATION = re.compile(
    r"(authorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)?)[^\s'\"]+", re.IGNORECASE
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)

# To its end: the part that tells what it is may be followed by more of it.
_KNOWN_SECRET = re.compile(rf"(?:{_SECRET_VALUE.pattern})[A-Za-z0-9_\-.]*")

_ENV_VARS = (
    (re.compile(r"hub|hf_|(^|\.)token$|hugging", re.IGNORECASE), "HF_TOKEN"),
    (re.compile(r"mlflow", re.IGNORECASE), "MLFLOW_TRACKING_PASSWORD"),
    (re.compile(r"clearml", re.IGNORECASE), "CLEARML_API_SECRET_KEY"),
    (re.compile(r"wandb", re.IGNORECASE), "WANDB_API_KEY"),
    (re.compile(r"aws", re.IGNORECASE), "AWS_SECRET_ACCESS_KEY"),
)


@dataclass(frozen=True)
class SecretFound:
    """Where a secret stands: `hub_token`, `model_init_kwargs.token`. It never holds the secret."""

    path: str

    @property
    def key(self) -> str:
        """The config key it belongs to."""
        return re.split(r"[.\[]", self.path, maxsplit=1)[0]

    @property
    def sentence(self) -> str:
        """What a person reads."""
        name = next((env_var for pattern, env_var in _ENV_VARS if pattern.search(self.path)), None)
        variable = f"the environment variable {name}" if name else "an environment variable"
        return (
            f"Config key {self.path!r} holds what looks like a secret, and a config is printed in logs. "
            f"Remove it and pass it from a Secret as {variable}."
        )


def mask_secrets(text: str) -> str:
    """`text` with `***` for what grants access: in the user part and the parameters of URLs, and by known prefixes."""
    text = _PRIVATE_KEY.sub(HIDDEN, text)
    text = _USER_INFO.sub(rf"\1{HIDDEN}@", text)
    text = _PARAMETER.sub(rf"\1\2\3{HIDDEN}", text)
    text = _AUTHORIZATION.sub(rf"\1{HIDDEN}", text)
    return _KNOWN_SECRET.sub(HIDDEN, text)


def remove_user_info(url: str) -> str:
    """`url` without user and password: a link that can be shown and followed."""
    return _USER_INFO.sub(r"\1", url)


def find_url_secrets(value: Any) -> Iterator[str]:
    """What `mask_secrets` would hide in the URLs of a config, for who prints the config with other means."""
    if isinstance(value, str):
        yield from (match[0][len(match[1]) : -1] for match in _USER_INFO.finditer(value))
        yield from (match[4] for match in _PARAMETER.finditer(value))
    elif isinstance(value, Mapping | list | tuple):
        for member in value.values() if isinstance(value, Mapping) else value:
            yield from find_url_secrets(member)


def find_secrets(config: Mapping[Any, Any]) -> list[SecretFound]:
    """Every place of `config` that holds a secret, at any depth."""
    return [SecretFound(path) for path in _paths(config, "", 0)]


def holds_secret(value: Any) -> bool:
    """Whether `value` itself, or something in it, looks like a secret."""
    return next(_paths(value, "", 0), None) is not None


def redact(value: Any, _depth: int = 0) -> Any:
    """`value` with `***` where a secret stands: for what is shown before a config was checked."""
    if isinstance(value, Mapping) and _depth < _MAX_DEPTH:
        return {
            name: HIDDEN if _is_secret_pair(name, member) else redact(member, _depth + 1)
            for name, member in value.items()
        }
    if isinstance(value, list | tuple) and _depth < _MAX_DEPTH:
        return [redact(member, _depth + 1) for member in value]
    return HIDDEN if holds_secret(value) else value


def _paths(value: Any, path: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, str):
        if _SECRET_VALUE.search(value) or _is_json_with_secret(value, depth):
            yield path
    elif isinstance(value, Mapping):
        yield from _paths_in_mapping(value, path, depth)
    elif isinstance(value, list | tuple):
        for index, member in enumerate(value):
            yield from _paths(member, f"{path}[{index}]", depth + 1)


def _paths_in_mapping(mapping: Mapping[Any, Any], path: str, depth: int) -> Iterator[str]:
    for name, member in mapping.items():
        inner = f"{path}.{name}" if path else f"{name}"
        if _is_secret_pair(name, member):
            yield inner
        else:
            yield from _paths(member, inner, depth + 1)


def _is_json_with_secret(text: str, depth: int) -> bool:
    """Some keys take an object as JSON text too."""
    value = read_object_text(text)
    return isinstance(value, dict) and next(_paths_in_mapping(value, "", depth + 1), None) is not None


def _is_secret_pair(name: Any, value: Any) -> bool:
    if not isinstance(name, str) or not isinstance(value, str) or not value.strip():
        return False
    plain = name.replace("-", "_")
    if not _SECRET_NAME.search(plain) or _PLAIN_NAME.search(plain):
        return False
    return not _TOKENIZER_TOKEN.fullmatch(value.strip())
