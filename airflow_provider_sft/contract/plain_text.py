"""Text that others wrote (rows, answers, file names, exceptions), made fit to print.

Logs, progress and markup are read line by line. Nothing of such a text starts a line, moves a cursor or turns the
direction of writing, and no secret of a URL is in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from airflow_provider_sft.contract.secrets import mask_secrets

# Before every further line of a text. No line that a program reads begins so: neither a progress line nor a level.
MARGIN = "  | "
# C0 without newline and tab, DEL, C1, line and paragraph separators, marks and overrides of direction, surrogates.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_NAMES = {"\r": "\\r", "\x1b": "\\x1b", "\b": "\\b"}
_MAX_DEPTH = 32


def plain_lines(text: str) -> str:
    """For a log: further lines begin with a margin, so that none of them is taken for a line of its own."""
    return plain_text(text).replace(f"\n{MARGIN}", "\n").replace("\n", f"\n{MARGIN}")


def plain_text(text: str) -> str:
    """Its lines stay lines; control characters are spelled, secrets masked."""
    return _UNPRINTABLE.sub(_spell, mask_secrets(text))


def plain_value(value: Any, _depth: int = 0) -> Any:
    """`value` with every text in it as `plain_text` has it."""
    if isinstance(value, str):
        return plain_text(value)
    if _depth < _MAX_DEPTH and isinstance(value, Mapping):
        return {name: plain_value(member, _depth + 1) for name, member in value.items()}
    if _depth < _MAX_DEPTH and isinstance(value, list | tuple):
        return [plain_value(member, _depth + 1) for member in value]
    return value


def _spell(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _NAMES.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")  # noqa: PLR2004
