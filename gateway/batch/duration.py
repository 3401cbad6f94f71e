"""Lengths of time as people write them: 12h, 90m, 1h30m, 2d, 45s or 3600."""

from __future__ import annotations

import math
import re

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*")


def seconds_of(text: str) -> float:
    """The length of time in seconds, above 0 and finite. Raises ValueError."""
    total, rest = 0.0, text.strip().lower()
    while rest:
        part = _PART.match(rest)
        if part is None or not (part[2] or total == 0.0):
            raise ValueError(f"{text!r} is not a length of time; write 12h, 90m, 1h30m, 2d or seconds")
        total += float(part[1]) * _UNITS_S[part[2] or "s"]
        rest = rest[part.end() :]
    if not 0 < total < math.inf:
        raise ValueError("a length of time must be more than 0")
    return total
