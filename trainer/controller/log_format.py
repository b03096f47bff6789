"""Log lines with the values of metrics filled in: str.format over plain data, without attributes of objects."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_sft.contract.wording import suggest

# Filled in besides the metrics.
GIVEN_FIELDS = ("event_name", "control_name", "args", "state", "path", "hf_path", "is_final")
_TOO_WIDE = re.compile(r"\d{4}")
_MISSING = "(none)"


def fill_in(log_format: str, values: Mapping[str, Any]) -> str:
    """`{trainer_state[epoch]:.1f}` and `{state.epoch}` alike; what is not there yet reads (none)."""
    return _PlainFormatter().vformat(log_format, (), values)


def find_flaws(log_format: str, metrics: Mapping[str, Any]) -> Iterator[str]:
    """What can never be filled in, as the end of a sentence.

    :param metrics: for each metric, something that looks like its value
    """
    try:
        fields = [
            (name, spec) for _, name, spec, _ in string.Formatter().parse(log_format) if name is not None
        ]
    except ValueError as error:
        yield f"is not a format ({error}). Write {{{{ and }}}} for braces."
        return
    for name, spec in fields:
        yield from _find_flaws_of_field(name, spec or "", metrics)


def _find_flaws_of_field(name: str, spec: str, metrics: Mapping[str, Any]) -> Iterator[str]:
    root, *keys = _split(name)
    known = [*metrics, *GIVEN_FIELDS]
    if root not in known:
        near = suggest(root, known)
        hint = f" Did you mean {near!r}?" if near else f" Known are {', '.join(known)}."
        yield f"fills in {{{name}}}, but {root!r} is no metric of this file.{hint}"
    elif "{" in spec or _TOO_WIDE.search(spec):
        yield f"fills in {{{name}:{spec}}}, which is too wide."
    elif root in metrics and _look_up(metrics[root], keys) is _MISSING:
        yield f"fills in {{{name}}}, which {root!r} does not have."


class _PlainFormatter(string.Formatter):
    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        root, *keys = _split(field_name)
        return _look_up(kwargs.get(root, _MISSING), keys), root

    def format_field(self, value: Any, format_spec: str) -> Any:
        try:
            return super().format_field(value, format_spec)
        except (TypeError, ValueError):  # `.2f` of a value that is not there yet
            return str(value)


def _split(field_name: str) -> list[str]:
    return [part for part in re.split(r"[.\[\]]+", field_name) if part] or [""]


def _look_up(value: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        try:
            value = value[int(key)] if isinstance(value, list | tuple) else _as_mapping(value)[key]
        except (KeyError, IndexError, ValueError):
            return _MISSING
    return value


def _as_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
