"""Parts that the charts share: scales, ticks, axes, and the figure around a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from math import floor, isfinite, log10

from markupsafe import Markup, escape

STEPS_S = (
    60, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 432000, 604800, 1209600, 2592000,
)  # fmt: skip
SERIES = 6
"""Number of colours; a seventh series has the first one's."""
_ids = count(1)


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps data in [low, high] linearly to coordinates in [0, extent]."""

    low: float
    high: float
    extent: float = 100.0

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        return (value - self.low) / span * self.extent if span else self.extent / 2

    def down(self, value: float) -> float:
        """The coordinate measured from the top, as SVG's vertical axis points downward."""
        return self.extent - self(value)


def round_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """About `wanted` round numbers that span [low, high]."""
    span = high - low
    if not isfinite(span) or span <= max(abs(low), abs(high), 1e-6) * 1e-6:
        return [low, low + max(abs(low), 1.0)]
    raw = span / wanted
    power = 10.0 ** floor(log10(raw))
    step = next(power * part for part in (1, 2, 2.5, 5, 10) if power * part >= raw * 0.999)
    first = floor(low / step + 1e-9)
    ticks = [float(f"{(first + i) * step:.9g}") for i in range(wanted + 4)]
    end = next(i for i, tick in enumerate(ticks) if tick >= high - step * 1e-2)
    return ticks[: end + 1]


def time_ticks(since_s: float, until_s: float, wanted: int = 5) -> list[tuple[float, str]]:
    """About `wanted` round times in [since_s, until_s], with their labels in UTC."""
    raw = (until_s - since_s) / wanted
    step = next((step for step in STEPS_S if step >= raw), STEPS_S[-1])
    form = "%H:%M" if step < 43200 else "%-d %b"
    first = -(-int(since_s) // step) * step
    return [(t, datetime.fromtimestamp(t, UTC).strftime(form)) for t in range(first, int(until_s) + 1, step)]


def place(value: float) -> str:
    """A coordinate as text, with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def chart_id() -> str:
    """An id that is unique in a page."""
    return f"chart{next(_ids)}"


def y_axis(ticks: Sequence[float], scale: Scale, labels: Sequence[str]) -> str:
    """Grid lines, with their labels to the left of the plot."""
    return "".join(
        f'<line class="rule" x1="0" x2="100%" y1="{place(y)}" y2="{place(y)}"/>'
        f'<text class="tick" x="-8" y="{place(y + 4)}" text-anchor="end">{escape(label)}</text>'
        for tick, label in zip(ticks, labels, strict=True)
        for y in [scale.down(tick)]
    )


def x_axis(ticks: Sequence[tuple[float, str]], scale: Scale, height: float) -> str:
    """Labels below the plot; the outermost ones are aligned so that they stay within it."""
    return "".join(
        f'<text class="tick" x="{place(x)}%" y="{place(height + 18)}" text-anchor="{anchor}">{escape(label)}</text>'
        for value, label in ticks
        for x in [scale(value)]
        for anchor in ["start" if x < 4 else "end" if x > 96 else "middle"]
    )


def figure(svg: str, *, title: str, description: str, height: float, legend: str = "", table: str = "") -> Markup:
    """The plot with its caption, legend and table. `description`: its text alternative."""
    label = chart_id()
    caption = f'<figcaption><span class="chart-title" id="{label}">{escape(title)}</span>{legend}</figcaption>'
    plot = (
        f'<div class="plot"><svg role="img" aria-labelledby="{label}" aria-describedby="{label}d" width="100%" '
        f'height="{place(height)}"><desc id="{label}d">{escape(description)}</desc>{svg}</svg></div>'
    )
    return Markup(f'<figure class="chart">{caption}{plot}{table}</figure>')  # noqa: S704  every part was escaped


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A folded table of the chart's figures."""
    if not rows:
        return ""
    top = "".join(f'<th scope="col">{escape(word)}</th>' for word in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        '<details class="figures"><summary>Figures</summary><div class="scroll" tabindex="0" role="group" '
        f'aria-label="Figures of the chart"><table class="tight"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def legend_of(names: Sequence[tuple[str, str]]) -> str:
    """A legend: for each series a sample of its line, its name and a figure."""
    items = "".join(
        f'<li><svg class="key s{i % SERIES}" width="22" height="10" aria-hidden="true"><line x1="1" x2="21" y1="5" '
        f'y2="5"/></svg>{escape(name)}{f" <b>{escape(value)}</b>" if value else ""}</li>'
        for i, (name, value) in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'
