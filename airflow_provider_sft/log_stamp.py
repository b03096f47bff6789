"""The time before each line of a container's log. The runtime writes it in the node's own zone; here it is UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_STAMP = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)(?: |$)", re.IGNORECASE | re.ASCII
)


def split_stamp(line: str) -> tuple[str, str]:
    """
    :returns: the time as text that sorts as time does (UTC, nine digits after the point), and the line without it;
        a line without a time is all text
    """
    found = _STAMP.match(line)
    if not found:
        return "", line
    seconds, fraction, offset = found.groups()
    try:
        moment = datetime.fromisoformat(f"{seconds}{offset.upper()}").astimezone(UTC)
    except (ValueError, OverflowError):
        return "", line
    return f"{_seconds(moment)}.{(fraction or '').ljust(9, '0')}Z", line[found.end() :]


def to_utc(stamp: str) -> str:
    """A time that was kept as the runtime wrote it, in the form of `split_stamp`; empty where there is none."""
    return split_stamp(stamp)[0]


def since_time(stamp: str, *, margin_s: float) -> str:
    """The API's `sinceTime` for a read that overlaps the one that ended at `stamp`: whole seconds, as it takes them."""
    moment = datetime.fromisoformat(stamp[: len("2026-01-01T00:00:00")])
    return f"{_seconds(moment - timedelta(seconds=margin_s))}Z"


def _seconds(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(timespec="seconds")
