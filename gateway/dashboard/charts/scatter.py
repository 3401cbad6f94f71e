"""Scatter charts of cost against quality, and of expected against observed quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from markupsafe import Markup, escape

from gateway.dashboard.charts import axes
from gateway.dashboard.charts.axes import Scale, place
from gateway.dashboard.units import in_unit, quality, trimmed


@dataclass(frozen=True, slots=True)
class Spot:
    """A point of a scatter chart; its intervals are None where they are unknown."""

    name: str
    cost_usd: float
    quality: float
    cost_low: float | None = None
    cost_high: float | None = None
    quality_low: float | None = None
    quality_high: float | None = None
    mark: str = "model"
    """model | now | then"""


@dataclass(frozen=True, slots=True)
class Bin:
    """A bin of a calibration chart: decisions of about the same expected quality."""

    expected: float
    observed: float
    low: float
    high: float
    count: int


def scatter_chart(
    title: str, spots: Sequence[Spot], hull: Sequence[tuple[float, float]] = (), *, height: float = 260,
    unit: str = "usd_per_1k", cost: str = "Cost per 1,000 requests",
) -> Markup:  # fmt: skip
    """A chart of cost against quality; empty without points. `hull`: the frontier's points (cost, quality), cheapest
    first. `cost` names the horizontal axis, `unit` is its unit.
    """
    if not spots:
        return Markup("")
    costs = [v for s in spots for v in (s.cost_low, s.cost_usd, s.cost_high) if v is not None] + [c for c, _ in hull]
    values = [v for s in spots for v in (s.quality_low, s.quality, s.quality_high) if v is not None]
    values += [q for _, q in hull]
    x_ticks = axes.round_ticks(0.0, max(*costs, 1e-9) * 1.02)
    y_ticks = axes.round_ticks(max(min(values) - 0.02, 0.0), min(max(*values, 0.0) + 0.02, 1.0))
    x, y = Scale(x_ticks[0], x_ticks[-1]), Scale(y_ticks[0], y_ticks[-1], height)
    svg = (
        axes.y_axis(y_ticks, y, [trimmed(quality(tick)) for tick in y_ticks])
        + axes.x_axis([(tick, trimmed(in_unit(tick, unit))) for tick in x_ticks], x, height)
        + _hull(hull, x, y)
        + "".join(_spot(spot, x, y, unit) for spot in spots)
    )
    rows = [[s.name, in_unit(s.cost_usd, unit), quality(s.quality), _between(s)] for s in spots]
    said = "; ".join(f"{name}: {cost.lower()} {x}, quality {y} {interval}" for name, x, y, interval in rows)
    head = ["Point", cost, "Quality", "95 % interval"]
    axis = f'<p class="axis-note">across: {escape(cost.lower())}; up: mean quality, 0 to 1</p>'
    table = axes.table_of(head, rows)
    return axes.figure(svg, title=title, description=said, height=height, legend=axis, table=table)


def _between(spot: Spot) -> str:
    if spot.quality_low is None or spot.quality_high is None:
        return ""
    return f"{quality(spot.quality_low)} to {quality(spot.quality_high)}"


def _hull(hull: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    if len(hull) < 2:
        return ""
    path = "L".join(f"{place(x(cost) * 10)} {place(y.down(worth))}" for cost, worth in hull)
    box = f'viewBox="0 0 1000 {place(y.extent)}" preserveAspectRatio="none"'
    return (
        f'<svg class="lines" {box} width="100%" height="{place(y.extent)}"><path class="hull" d="M{path}"/></svg>'
    )


def _spot(spot: Spot, x: Scale, y: Scale, unit: str) -> str:
    cx, cy = x(spot.cost_usd), y.down(spot.quality)
    whiskers = ""
    if spot.quality_low is not None and spot.quality_high is not None:
        top, bottom = y.down(min(spot.quality_high, y.high)), y.down(max(spot.quality_low, y.low))
        whiskers += f'<line x1="{place(cx)}%" x2="{place(cx)}%" y1="{place(top)}" y2="{place(bottom)}"/>'
    if spot.cost_low is not None and spot.cost_high is not None:
        left, right = x(max(spot.cost_low, x.low)), x(min(spot.cost_high, x.high))
        whiskers += f'<line x1="{place(left)}%" x2="{place(right)}%" y1="{place(cy)}" y2="{place(cy)}"/>'
    anchor, shift = ("end", -11) if cx > 65 else ("start", 11)
    label = (
        f'<svg x="{place(cx)}%" y="{place(cy)}" overflow="visible">{_mark(spot.mark)}'
        f'<text x="{shift}" y="{-8 if spot.mark != "then" else 17}" text-anchor="{anchor}">{escape(spot.name)}</text>'
        f"</svg>"
    )
    hint = f"{spot.name}: {in_unit(spot.cost_usd, unit)}, quality {quality(spot.quality)} {_between(spot)}"
    return f'<g class="spot {escape(spot.mark)}"><title>{escape(hint)}</title>{whiskers}{label}</g>'


def _mark(mark: str) -> str:
    if mark == "model":
        return '<circle r="4.5"/>'
    return '<path d="M0 -8L8 0L0 8L-8 0Z"/>'


def calibration_chart(title: str, bins: Sequence[Bin], *, height: float = 200) -> Markup:
    """Expected quality on the horizontal axis, observed quality on the vertical one; empty without bins."""
    if not bins:
        return Markup("")
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    x, y = Scale(0.0, 1.0), Scale(0.0, 1.0, height)
    most = max(one.count for one in bins)
    svg = (
        axes.y_axis(ticks, y, [f"{tick:.2f}" for tick in ticks])
        + axes.x_axis([(tick, f"{tick:.2f}") for tick in ticks], x, height)
        + f'<line class="diagonal" x1="0" y1="{place(height)}" x2="100%" y2="0"/>'
        + "".join(_bin(one, most, x, y) for one in bins if isfinite(one.observed))
    )
    rows = [
        [quality(b.expected), quality(b.observed), f"{quality(b.low)} to {quality(b.high)}", f"{b.count:,}"]
        for b in bins
    ]
    said = "; ".join(f"expected {row[0]}, observed {row[1]}, {row[2]}, {row[3]} answers" for row in rows)
    axis = '<p class="axis-note">across: quality expected; up: quality observed; on the line they agree</p>'
    table = axes.table_of(["Expected", "Observed", "95 % interval", "Answers"], rows)
    return axes.figure(svg, title=title, description=said, height=height, legend=axis, table=table)


def _bin(one: Bin, most: int, x: Scale, y: Scale) -> str:
    cx, radius = place(x(one.expected)), 3 + 4 * (one.count / most) ** 0.5
    hint = f"expected {quality(one.expected)}, observed {quality(one.observed)}, {one.count} answers"
    return (
        f'<g class="spot bin"><title>{escape(hint)}</title>'
        f'<line x1="{cx}%" x2="{cx}%" y1="{place(y.down(one.high))}" y2="{place(y.down(one.low))}"/>'
        f'<circle cx="{cx}%" cy="{place(y.down(one.observed))}" r="{place(radius)}"/></g>'
    )
