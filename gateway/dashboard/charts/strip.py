"""Small horizontal charts that stand in a table or beside a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from gateway.dashboard.charts.axes import SERIES, Scale, place
from gateway.dashboard.units import percent


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a whole; `share` is between 0 and 1."""

    name: str
    share: float


def whisker(value: float, low: float, high: float, *, span: tuple[float, float] | None = None) -> Markup:
    """An estimate with its interval, and a line at zero where zero lies within `span`. It is hidden from screen
    readers, so the figures must also be given as text.
    """
    left, right = span or (min(low, 0.0), max(high, 0.0))
    reach = (right - left) * 0.06 or 1.0
    x = Scale(left - reach, right + reach)
    zero = f'<line class="zero" x1="{place(x(0))}%" x2="{place(x(0))}%" y1="1" y2="15"/>' if left <= 0 <= right else ""
    return Markup(  # noqa: S704  numbers only
        f'<svg class="whisker" width="100%" height="16" aria-hidden="true">{zero}'
        f'<line class="reach" x1="{place(x(max(low, x.low)))}%" x2="{place(x(min(high, x.high)))}%" y1="8" y2="8"/>'
        f'<circle cx="{place(min(max(x(value), 0), 100))}%" cy="8" r="4"/></svg>'
    )


def share_bar(title: str, parts: Sequence[Part], *, height: float = 12) -> Markup:
    """A bar of shares side by side, with their names below."""
    at, bars = 0.0, ""
    for i, part in enumerate(parts):
        if part.share > 0:
            bars += (
                f'<rect class="s{i % SERIES}" x="{place(at * 100)}%" width="{place(part.share * 100)}%" y="0" '
                f'height="{place(height)}"><title>{escape(part.name)}: {percent(part.share)}</title></rect>'
            )
        at += part.share
    said = ", ".join(f"{part.name} {percent(part.share)}" for part in parts)
    keys = "".join(
        f'<li><svg class="key s{i % SERIES}" width="10" height="10" aria-hidden="true"><rect width="10" height="10"/>'
        f"</svg>{escape(part.name)} <b>{percent(part.share)}</b></li>"
        for i, part in enumerate(parts)
    )
    return Markup(  # noqa: S704  escaped
        f'<div class="shares"><svg role="img" aria-label="{escape(title)}: {escape(said)}" width="100%" '
        f'height="{place(height)}">{bars}</svg><ul class="legend">{keys}</ul></div>'
    )
