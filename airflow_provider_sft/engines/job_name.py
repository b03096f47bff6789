"""A job's name: its engine makes host names of it."""

from __future__ import annotations

import hashlib
import re

# Engines append as much as `-node-0-999-x7k2p`, and 63 characters are a host name's limit.
_MAX_NAME, _SUFFIX = 40, 9


def name_job(name: str, *, room_for_suffix: bool) -> str:
    """A host name's label, short enough for what engines append, and told apart from others of the same beginning."""
    longest = _MAX_NAME - (_SUFFIX if room_for_suffix else 0)
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    label = label if label[:1].isalpha() else f"sft-{label}".rstrip("-")
    if len(label) <= longest:
        return label
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{label[: longest - 7].rstrip('-')}-{digest}"
