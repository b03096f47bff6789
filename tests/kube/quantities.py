"""Resource quantities: `80Gi`, `500m`, `2`."""

from __future__ import annotations

import re
from decimal import Decimal

_QUANTITY = re.compile(r"^([+-]?\d+(?:\.\d*)?|[+-]?\.\d+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?\d+)?$")
_FACTORS = {"": Decimal(1), "m": Decimal("0.001")}
_FACTORS |= {suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", start=1)}
_FACTORS |= {f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)}


def parse_quantity(text: str | float) -> Decimal:
    """:raises ValueError: for text that the API server would refuse"""
    match = _QUANTITY.match(str(text))
    if not match:
        raise ValueError(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        )
    number, suffix = match.groups(default="")
    if suffix[:1] in ("e", "E") and suffix not in ("E", "Ei"):
        return Decimal(number + suffix)
    return Decimal(number) * _FACTORS[suffix]
