"""Formats numbers for the dashboard, each with its unit and no more digits than are significant.

A narrow no-break space separates number and unit, and negative numbers have a true minus sign, so that columns line up.
An unknown value (None or not finite) is a dash, never a zero.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any

GAP = "\u202f"
DASH = "\u2013"
MINUS = "\u2212"
_SIZES = ("B", "kB", "MB", "GB", "TB")


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits, or to the unit from there on: 1234.5 -> 1,234; 0.01234 -> 0.0123."""
    if value is None or not isfinite(value):
        return DASH
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10 ** (digits - 1):
        return signed(f"{value:,.0f}")
    places = digits - 1 - _magnitude(size)
    if places > 9:
        return signed(f"{value:.{digits - 1}e}")
    return signed(f"{value:,.{places}f}")


def _magnitude(size: float) -> int:
    """The power of ten of the first digit, after rounding: 0.0999996 counts as 0.1."""
    return int(f"{size:.2e}".partition("e")[2])


def trimmed(text: str) -> str:
    """Remove trailing zeros of a fraction: 2.00 s is 2 s; dollars keep two digits."""
    whole = re.sub(r"\.(\d*?)0+(?!\d)", r".\1", text)
    if whole.lstrip(MINUS).startswith("$"):
        whole = re.sub(r"\.(\d)(?!\d)", r".\g<1>0", whole)
    return re.sub(r"\.(?!\d)", "", whole)


def signed(text: str) -> str:
    """Replace hyphens by true minus signs."""
    return text.replace("-", MINUS)


def plain(value: float | None) -> str:
    """A number without grouping or unit, as it would be typed."""
    return DASH if value is None or not isfinite(value) else signed(f"{value:g}")


def count(value: float | None) -> str:
    """A whole number; abbreviated from a million on: 1.24 M."""
    if value is None or not isfinite(value):
        return DASH
    if abs(value) >= 1e9:
        return f"{number(value / 1e9)}{GAP}G"
    if abs(value) >= 1e6:
        return f"{number(value / 1e6)}{GAP}M"
    return signed(f"{value:,.0f}")


def usd(value: float | None) -> str:
    """US dollars: two decimals from ten cents up, three significant digits below."""
    if value is None or not isfinite(value):
        return DASH
    size = abs(value)
    text = f"{size:,.0f}" if size >= 10_000 else f"{size:,.2f}" if size >= 0.0995 else trimmed(number(size))
    return f"{MINUS if value < 0 else ''}${text}"


def usd_per_1k(value: float | None) -> str:
    """US dollars per request, formatted as dollars per thousand requests."""
    return usd(None if value is None else value * 1000)


def seconds(value: float | None) -> str:
    """A length of time: in milliseconds below one second; in minutes, hours or days from two minutes up."""
    if value is None or not isfinite(value):
        return DASH
    size = abs(value)
    if size < 1:
        return f"{number(value * 1000)}{GAP}ms"
    if size < 120:
        return f"{number(value)}{GAP}s"
    length_s, unit = (60, "min") if size < 7200 else (3600, "h") if size < 172_800 else (86400, "days")
    return f"{trimmed(number(value / length_s))}{GAP}{unit}"


def percent(share: float | None, digits: int = 3) -> str:
    """A share of 1 in per cent, with at most one decimal from 0.1 % up."""
    if share is None or not isfinite(share):
        return DASH
    value = share * 100
    places = 0 if abs(value) >= 99.95 or value == 0 else 1 if abs(value) >= 0.1 else digits - 1
    return f"{signed(f'{value:.{places}f}')}{GAP}%"


def quality(value: float | None) -> str:
    """A score between 0 and 1, with three decimals."""
    return DASH if value is None or not isfinite(value) else signed(f"{value:.3f}")


def difference(text: str) -> str:
    """Put a plus sign before a positive number."""
    return text if text.startswith((MINUS, DASH)) or not re.search("[1-9]", text) else f"+{text}"


def size(value: float | None) -> str:
    """Bytes in powers of a thousand: 1.5 MB."""
    if value is None or not isfinite(value):
        return DASH
    for unit in _SIZES[:-1]:
        if abs(value) < 1000:
            return f"{number(value)}{GAP}{unit}"
        value /= 1000
    return f"{number(value)}{GAP}{_SIZES[-1]}"


UNITS: Mapping[str, Callable[[float | None], str]] = {
    "usd": usd, "usd_per_1k": usd_per_1k, "s": seconds, "share": percent, "quality": quality, "count": count,
    "number": number, "plain": plain, "bytes": size,
}  # fmt: skip


def in_unit(value: float | None, unit: str) -> str:
    """A number in one of UNITS."""
    return UNITS[unit](value)


def moment(time_s: float) -> str:
    """A time in UTC, to the second."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def iso(time_s: float) -> str:
    """A time in ISO 8601, in UTC."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ago(time_s: float | None, now_s: float | None = None) -> str:
    """How long ago a time was, or until it comes: "3 min ago", "in 2 h"; "never" for None."""
    if time_s is None:
        return "never"
    past_s = (time.time() if now_s is None else now_s) - time_s
    for unit, length_s in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if abs(past_s) >= length_s:
            return _relative(int(abs(past_s) / length_s), unit, past_s)
    return "just now" if abs(past_s) < 2 else _relative(int(abs(past_s)), "s", past_s)


def _relative(amount: int, unit: str, past_s: float) -> str:
    return f"{amount}{GAP}{unit} ago" if past_s > 0 else f"in {amount}{GAP}{unit}"


def short_id(id: str) -> str:
    """An id shortened to its kind and last six characters, for tables that link to the whole id."""
    kind, _, rest = id.rpartition("_")
    return f"{kind}_…{rest[-6:]}" if len(id) > 16 else id


def sentence(text: str) -> str:
    """A text with a capital letter and a full stop; a name at the start stays as it is."""
    first = text[:1] if re.match(r"\w+['_@/]", text) else text[:1].upper()
    return f"{first}{text[1:]}" + ("" if text.endswith((".", "?", "!")) else ".")


def file_name(text: str) -> str:
    """The last part of a path."""
    return text.rpartition("/")[2]


FILTERS: dict[str, Any] = {
    "ago": ago, "count": count, "difference": difference, "file_name": file_name, "iso": iso, "moment": moment,
    "number": number, "percent": percent, "plain": plain, "quality": quality, "seconds": seconds,
    "sentence": sentence, "short_id": short_id, "size": size, "in_unit": in_unit, "trimmed": trimmed, "usd": usd,
    "usd_per_1k": usd_per_1k,
}  # fmt: skip
