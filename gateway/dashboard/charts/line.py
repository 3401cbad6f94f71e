"""Quantities over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby

from markupsafe import Markup, escape

from gateway.dashboard.charts import axes
from gateway.dashboard.charts.axes import Scale, place
from gateway.dashboard.units import DASH, told, trimmed

Point = tuple[float, float | None]
"""Unix seconds and a value; None: nothing is known of that time."""
TIPS = 72
"""Places of a chart that say something to the pointer, at most."""
ROWS = 24
"""Of the table beside a chart; the latest."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line. All series of a chart have the same times."""

    name: str
    points: Sequence[Point]


def line_chart(
    title: str, series: Sequence[Series], unit: str, *, height: float = 168, floor: float | None = 0.0,
    ceiling: float | None = None,
) -> Markup:  # fmt: skip
    """`unit`: one of `units.UNITS`. `floor`: the axis begins here at the latest; None: at the least value."""
    known = [(t, v) for one in series for t, v in one.points if v is not None]
    if not known:
        return Markup("")
    times = [t for t, _ in series[0].points]
    values = [v for _, v in known]
    low = min(values) if floor is None else min(*values, floor)
    ticks = axes.round_ticks(low, max(*values, low, ceiling if ceiling is not None else low))
    x, y = Scale(times[0], times[-1]), Scale(ticks[0], ticks[-1], height)
    svg = (
        axes.y_axis(ticks, y, [trimmed(told(tick, unit)) for tick in ticks])
        + axes.x_axis(axes.time_ticks(times[0], times[-1]), x, height)
        + _paths(series, x, y)
        + _hints(series, x, unit)
    )
    last = [next((v for _, v in reversed(one.points) if v is not None), None) for one in series]
    legend = axes.legend_of([(one.name, told(v, unit)) for one, v in zip(series, last, strict=True)])
    return axes.figure(
        svg, title=title, told=_spoken(series, unit), height=height, legend=legend, table=_table(series, unit)
    )


def sparkline(title: str, points: Sequence[Point], unit: str, *, height: float = 36) -> Markup:
    """A line without axes, for beside a figure."""
    known = [v for _, v in points if v is not None]
    if len(known) < 2:
        return Markup("")
    x, y = Scale(points[0][0], points[-1][0]), Scale(min(0.0, *known), max(known) or 1.0, height - 4)
    svg = f'<g transform="translate(0 2)">{_paths([Series(title, points)], x, y)}</g>'
    said = f"{title}: {_range(known, unit)}"
    return Markup(  # noqa: S704  escaped
        f'<svg class="spark" role="img" aria-label="{escape(said)}" width="100%" height="{place(height)}">{svg}</svg>'
    )


def _paths(series: Sequence[Series], x: Scale, y: Scale) -> str:
    """Each line in a plot of its own that is stretched; a gap where nothing is known; a lone point as a dot."""
    drawn, dots = "", ""
    for i, one in enumerate(series):
        for known, run in groupby(one.points, key=lambda point: point[1] is not None):
            places = [(x(t) * 10, y.down(v)) for t, v in run if v is not None] if known else []
            if len(places) == 1:
                dots += f'<circle class="s{i % axes.SERIES}" cx="{place(places[0][0] / 10)}%" '
                dots += f'cy="{place(places[0][1])}" r="2.5"/>'
            elif places:
                path = "L".join(f"{place(px)} {place(py)}" for px, py in places)
                drawn += f'<path class="s{i % axes.SERIES}" d="M{path}"/>'
    box = f'viewBox="0 0 1000 {place(y.extent)}" preserveAspectRatio="none"'
    return f'<svg class="lines" {box} width="100%" height="{place(y.extent)}">{drawn}</svg>{dots}'


def _hints(series: Sequence[Series], x: Scale, unit: str) -> str:
    """What the pointer is told at each time."""
    times = [t for t, _ in series[0].points]
    step = -(-len(times) // TIPS)
    width = 100 * step / max(len(times) - 1, 1)
    return "".join(
        f'<rect class="tip" x="{place(max(x(t) - width / 2, 0))}%" y="0" width="{place(width)}%" height="100%">'
        f"<title>{escape(_when(t))}\n{escape(_values(series, i, unit))}</title></rect>"
        for i, t in enumerate(times)
        if i % step == 0
    )


def _values(series: Sequence[Series], i: int, unit: str) -> str:
    return "\n".join(f"{one.name}: {told(one.points[i][1], unit)}" for one in series)


def _spoken(series: Sequence[Series], unit: str) -> str:
    said = []
    for one in series:
        known = [v for _, v in one.points if v is not None]
        said.append(f"{one.name}: {_range(known, unit)}" if known else f"{one.name}: nothing known")
    return "; ".join(said)


def _range(known: Sequence[float], unit: str) -> str:
    return f"{told(known[-1], unit)} at the end, between {told(min(known), unit)} and {told(max(known), unit)}"


def _table(series: Sequence[Series], unit: str) -> str:
    times = [t for t, _ in series[0].points][-ROWS:]
    offset = len(series[0].points) - len(times)
    rows = [
        [_when(t), *(told(one.points[offset + i][1], unit) if one.points else DASH for one in series)]
        for i, t in enumerate(times)
    ]
    return axes.table_of(["Time (UTC)", *(one.name for one in series)], rows[::-1])


def _when(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%-d %b %H:%M")
