"""Numbers as people read them: each with its unit, none with more digits than it deserves.

A narrow no-break space stands before a unit and a true minus before a negative number, so that columns line up.
What is not known is a dash, never a zero.
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
    """`digits` significant ones, grouped by thousands: 1234.5 -> 1,234 or 1,235; 0.01234 -> 0.0123."""
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
    """Without zeros at the end of a fraction: 2.00 s is 2 s; cents stay two digits."""
    whole = re.sub(r"\.(\d*?)0+(?!\d)", r".\1", text)
    if whole.lstrip(MINUS).startswith("$"):
        whole = re.sub(r"\.(\d)(?!\d)", r".\g<1>0", whole)
    return re.sub(r"\.(?!\d)", "", whole)


def signed(text: str) -> str:
    """With a true minus."""
    return text.replace("-", MINUS)


def plain(value: float | None) -> str:
    """As somebody would have typed it."""
    return DASH if value is None or not isfinite(value) else signed(f"{value:g}")


def count(value: float | None) -> str:
    """A whole number; above a million shortened: 1.24 M."""
    if value is None or not isfinite(value):
        return DASH
    if abs(value) >= 1e9:
        return f"{number(value / 1e9)}{GAP}G"
    if abs(value) >= 1e6:
        return f"{number(value / 1e6)}{GAP}M"
    return signed(f"{value:,.0f}")


def usd(value: float | None) -> str:
    """Dollars: cents from ten cents up, three digits below."""
    if value is None or not isfinite(value):
        return DASH
    size = abs(value)
    text = f"{size:,.0f}" if size >= 10_000 else f"{size:,.2f}" if size >= 0.0995 else trimmed(number(size))
    return f"{MINUS if value < 0 else ''}${text}"


def usd_per_1k(value: float | None) -> str:
    """Dollars per request, told per thousand requests."""
    return usd(None if value is None else value * 1000)


def seconds(value: float | None) -> str:
    """Milliseconds below one second, minutes and hours above two minutes."""
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
    """A share of one, in per cent; a tenth of a per cent at most."""
    if share is None or not isfinite(share):
        return DASH
    value = share * 100
    places = 0 if abs(value) >= 99.95 or value == 0 else 1 if abs(value) >= 0.1 else digits - 1
    return f"{signed(f'{value:.{places}f}')}{GAP}%"


def quality(value: float | None) -> str:
    """A score between 0 and 1, three places."""
    return DASH if value is None or not isfinite(value) else signed(f"{value:.3f}")


def difference(text: str) -> str:
    """With a plus where it is positive."""
    return text if text.startswith((MINUS, DASH)) or not re.search("[1-9]", text) else f"+{text}"


def size(value: float | None) -> str:
    """Bytes, in powers of a thousand."""
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


def told(value: float | None, unit: str) -> str:
    """In one of UNITS."""
    return UNITS[unit](value)


def moment(time_s: float) -> str:
    """UTC, to the second."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def iso(time_s: float) -> str:
    """For `<time datetime>`."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ago(time_s: float | None, now_s: float | None = None) -> str:
    """How long since, or until: "3 min ago", "in 2 h"."""
    if time_s is None:
        return "never"
    past_s = (time.time() if now_s is None else now_s) - time_s
    for unit, length_s in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if abs(past_s) >= length_s:
            return _away(int(abs(past_s) / length_s), unit, past_s)
    return "just now" if abs(past_s) < 2 else _away(int(abs(past_s)), "s", past_s)


def _away(amount: int, unit: str, past_s: float) -> str:
    return f"{amount}{GAP}{unit} ago" if past_s > 0 else f"in {amount}{GAP}{unit}"


def short_id(id: str) -> str:
    """An id's kind and last six characters: enough to tell rows apart; the whole of it is in the link."""
    kind, _, rest = id.rpartition("_")
    return f"{kind}_…{rest[-6:]}" if len(id) > 16 else id


def sentence(text: str) -> str:
    """With a capital and a full stop; a name in front stays as it is written."""
    first = text[:1] if re.match(r"\w+['_@/]", text) else text[:1].upper()
    return f"{first}{text[1:]}" + ("" if text.endswith((".", "?", "!")) else ".")


def file_name(text: str) -> str:
    """The last part of a path; anything else as it is."""
    return text.rpartition("/")[2]


FILTERS: dict[str, Any] = {
    "ago": ago, "count": count, "difference": difference, "file_name": file_name, "iso": iso, "moment": moment,
    "number": number, "percent": percent, "plain": plain, "quality": quality, "seconds": seconds,
    "sentence": sentence, "short_id": short_id, "size": size, "told": told, "trimmed": trimmed, "usd": usd,
    "usd_per_1k": usd_per_1k,
}  # fmt: skip
