"""The paths of a config: which keys name one, and what is wrong with it before a disk is seen."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import unquote, urlsplit

from airflow_provider_sft.contract.json_values import read_object_text
from airflow_provider_sft.contract.names import LEFT_BY_A_RUN, TRAINING_LOGS_FILE
from airflow_provider_sft.contract.schema import LAUNCH_KEY, JSONSchema, config_keys, launch_flags
from airflow_provider_sft.contract.wording import show

# Of Linux, in bytes: a path with its final NUL, and one name in it.
_MAX_PATH_BYTES, _MAX_NAME_BYTES = 4_096, 255
# Free text, which may look like anything.
_NOT_PATHS = frozenset({"exp_metadata"})
_INSIDE_THE_MODEL = frozenset({"subfolder", "gguf_file"})
_PATH_NAME = re.compile(r"(^|_)(path|dir|directory|file|filename|folder)$")
_LOOKS_LOCAL = re.compile(r"(/|~|\.\.?/|file:)")
_SCHEME = re.compile(r"([A-Za-z][\w+.-]+):")
# Files of a model and its tokenizer, which are saved in output_dir too.
_MODEL_FILES = (
    "*.safetensors*", "*.bin", "*.pt", "*.html", "config.json", "generation_config.json", "tokenizer*", "vocab*",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "trainer_state.json", "README.md",
)  # fmt: skip


@dataclass(frozen=True)
class NamedPath:
    """
    :param key: as a sentence names it: `output_dir`, `accelerate_launch_args.config_file`
    :param text: the path, without the scheme of a `file:` or `sqlite:` address
    :param written: the run writes there; else it only reads
    :param may_be: what else than a path the text may be: `hub`, or nothing
    """

    key: str
    text: str
    written: bool
    may_be: str = ""


def named_paths(config: Mapping[str, Any]) -> list[NamedPath]:
    """Every path that `config` names, nested ones included; `subfolder` and `gguf_file` are names inside the model.

    :param config: under present names
    """
    return [path for path in _walk(config) if path.text]


def find_path_mistakes(config: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each path that no disk can have, or that a run must not write to."""
    for path in _walk(config):
        yield from _flaws(path)
    yield from _names_inside_the_model(config)
    yield from _log_name(config)
    yield from _writes_over_the_model(config)


def _walk(config: Mapping[str, Any]) -> Iterator[NamedPath]:
    for key, value in config.items():
        if key == LAUNCH_KEY and isinstance(value, Mapping):
            for flag, argument in value.items():
                yield from _declared(f"{LAUNCH_KEY}.{flag}", argument, launch_flags().get(flag, {}))
        elif key not in _NOT_PATHS:
            yield from _declared(key, value, config_keys().get(key, {}))


def _declared(key: str, value: Any, prop: JSONSchema) -> Iterator[NamedPath]:
    content = read_object_text(value)
    if isinstance(content, Mapping | list):
        yield from _nested(key, content)
    elif "x-path" in prop and isinstance(value, str) and value not in _switches(key):
        may_be = prop.get("x-path-or", "")
        text = _local_part(value) if may_be == "address" else value
        if text is not None:
            yield NamedPath(key, text, prop["x-path"] == "write", "" if may_be == "address" else may_be)


def _switches(key: str) -> tuple[str, ...]:
    return ("true", "True", "false", "False") if key == "resume_from_checkpoint" else ()


def _nested(key: str, value: Any) -> Iterator[NamedPath]:
    """What looks like a path, or stands under a name of one: it may be written."""
    for name, member in _members(value):
        if isinstance(member, Mapping | list):
            yield from _nested(f"{key}.{name}", member)
        elif isinstance(member, str) and name not in _INSIDE_THE_MODEL:
            text = _local_part(member)
            if text and (_LOOKS_LOCAL.match(member) or _PATH_NAME.search(name)):
                yield NamedPath(f"{key}.{name}", text, written=True)


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    return ((str(name), member) for name, member in items)


def _local_part(address: str) -> str | None:
    """The path in a `file:` or `sqlite:` address, or a text without a scheme; None for a server's address."""
    if not (scheme := _SCHEME.match(address)):
        return address
    parts = urlsplit(address)
    if scheme[1] == "file":
        return unquote(parts.path)
    if scheme[1].startswith("sqlite"):
        return unquote(parts.path)[1:]  # sqlite:///relative, sqlite:////absolute
    return None


def _flaws(path: NamedPath) -> Iterator[str]:
    where, text = f"Config key {path.key!r}", path.text
    if not text.strip():
        yield f"{where} is {show(text)}, which is not a path. Give one, or drop the key; a template may have rendered to nothing."
    elif "\0" in text:
        yield f"{where} is {show(text)}, which holds a NUL character. Remove it."
    elif too_long := _too_long(text):
        yield f"{where} is a path {too_long}. Give a shorter one."
    elif path.written and _normal(text) == "/":
        yield f"{where} is {show(text)}, the root directory. Name a directory of its own."


def _too_long(text: str) -> str:
    size = len(os.fsencode(text))
    longest = max(len(os.fsencode(name)) for name in text.split("/"))
    if size >= _MAX_PATH_BYTES:
        return f"of {size} bytes, and Linux takes fewer than {_MAX_PATH_BYTES}"
    if longest > _MAX_NAME_BYTES:
        return f"with a name of {longest} bytes in it, and file systems take at most {_MAX_NAME_BYTES}"
    return ""


def _names_inside_the_model(config: Mapping[str, Any]) -> Iterator[str]:
    options = read_object_text(config.get("model_init_kwargs"))
    for name in sorted(_INSIDE_THE_MODEL & options.keys()) if isinstance(options, Mapping) else ():
        text = options[name]
        if text and (not isinstance(text, str) or text.startswith(("/", "~")) or ".." in text.split("/")):
            yield (
                f"Config key 'model_init_kwargs.{name}' is {show(text)}. Give a name inside the model's directory, "
                f"without '..'."
            )


def _log_name(config: Mapping[str, Any]) -> Iterator[str]:
    name = config.get("training_logs_filename")
    if not isinstance(name, str) or name == TRAINING_LOGS_FILE:
        return
    expected = "Give a file's name; it lies in output_dir."
    if "/" in name or "\0" in name or name in ("", ".", "..") or len(os.fsencode(name)) > _MAX_NAME_BYTES:
        yield f"Config key 'training_logs_filename' is {show(name)}. {expected}"
    elif name.startswith(".") or any(fnmatchcase(name, taken) for taken in (*LEFT_BY_A_RUN, *_MODEL_FILES)):
        yield (
            f"Config key 'training_logs_filename' is {show(name)}, a name that the run needs for something else. "
            f"{expected}"
        )


def _writes_over_the_model(config: Mapping[str, Any]) -> Iterator[str]:
    model = config.get("model_name_or_path")
    for path in named_paths(config):
        if path.written and model and _normal(path.text) == _normal(str(model)):
            yield (
                f"Config key {path.key!r} is {show(path.text)}, the directory of the base model, which would be "
                f"overwritten. Name another directory."
            )


def _normal(text: str) -> str:
    """Without `.`, `..` and double slashes; also at the start, where POSIX would keep two."""
    return re.sub(r"^//+", "/", os.path.normpath(text))
