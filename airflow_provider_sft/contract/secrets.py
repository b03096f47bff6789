"""Secrets in a config, told by the name of their key and by the prefixes that services give them, never by entropy.

A config is printed: in Airflow's Rendered Templates, in the pod's manifest, in the report. Secrets travel as
environment variables from a Secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

HIDDEN = "***"
_MAX_DEPTH = 32

_SECRET_NAME = re.compile(
    r"(^|_)(token|password|passwd|passphrase|secret|credentials?|key|apikey)$", re.IGNORECASE
)
# Names that end like a secret's and hold none.
_PLAIN_NAMES = frozenset(
    f"{prefix}_token"
    for prefix in (
        "eos",
        "bos",
        "pad",
        "unk",
        "cls",
        "sep",
        "mask",
        "image",
        "audio",
        "video",
        "special",
        "fake",
        "boi",
        "eoi",
        "start",
        "end",
        "stop",
        "new",
        "prefix",
        "suffix",
        "middle",
        "invocation",
        "separator",
        "response",
        "instruction",
    )
) | {"sort_key", "primary_key", "column_key", "text_key", "image_key", "key", "token"}
_SECRET_NAMES_ALONE = frozenset({"password", "passwd", "secret", "token", "apikey"})
_TOKENIZER_TOKEN = re.compile(r"[<\[{|(].*[>\]}|)]", re.DOTALL)  # <|im_end|>, [PAD], </s>

_VALUE_START = r"(?<![A-Za-z0-9_/.\-])"
_SECRET_VALUE = re.compile(
    "|".join(
        (
            _VALUE_START + r"hf_[A-Za-z0-9]{30,}",
            _VALUE_START + r"(api|org)_[A-Za-z]{34}(?![A-Za-z0-9])",
            _VALUE_START + r"gh[pousr]_[A-Za-z0-9]{36,}",
            _VALUE_START + r"github_pat_[A-Za-z0-9_]{22,}",
            _VALUE_START + r"glpat-[A-Za-z0-9_\-]{20,}",
            _VALUE_START + r"sk-(proj-|ant-[a-z0-9]+-)?[A-Za-z0-9]{20,}",
            _VALUE_START + r"xox[abprs]-[A-Za-z0-9\-]{10,}",
            _VALUE_START + r"(AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
            _VALUE_START + r"AIza[A-Za-z0-9_\-]{35}",
            _VALUE_START + r"ya29\.[A-Za-z0-9_\-]{20,}",
            _VALUE_START + r"nvapi-[A-Za-z0-9_\-]{20,}",
            _VALUE_START + r"(dckr_pat_|npm_|pypi-)[A-Za-z0-9_\-]{20,}",
            _VALUE_START + r"eyJ[A-Za-z0-9_\-]{10,}\.eyJ[A-Za-z0-9_\-]{10,}\.",
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
            r"AccountKey=[A-Za-z0-9+/=]{20,}",
            r"[A-Za-z][A-Za-z0-9+.\-]*://[^/\s:@]*:[^/\s:@{$][^/\s@]*@",  # user:password@host
        )
    )
)

_ENV_VARS = (
    (re.compile(r"hub|hf_|^token$|hugging", re.IGNORECASE), "HF_TOKEN"),
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
    return HIDDEN if _is_secret_text(value) else value


def _paths(value: Any, path: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        for name, member in value.items():
            inner = f"{path}.{name}" if path else f"{name}"
            if _is_secret_pair(name, member):
                yield inner
            else:
                yield from _paths(member, inner, depth + 1)
    elif isinstance(value, list | tuple):
        for index, member in enumerate(value):
            yield from _paths(member, f"{path}[{index}]", depth + 1)
    elif _is_secret_text(value):
        yield path


def _is_secret_pair(name: Any, value: Any) -> bool:
    if not isinstance(name, str) or not isinstance(value, str) or not value.strip():
        return False
    lowered = name.lower()
    if not _SECRET_NAME.search(lowered.replace("-", "_")):
        return False
    if lowered in _PLAIN_NAMES and lowered not in _SECRET_NAMES_ALONE:
        return False
    return not _TOKENIZER_TOKEN.fullmatch(value.strip())


def _is_secret_text(value: Any) -> bool:
    return isinstance(value, str) and bool(_SECRET_VALUE.search(value))
