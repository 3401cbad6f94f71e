"""Line charts of quantities over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby

from markupsafe import Markup, escape

from gateway.dashboard.charts import axes
from gateway.dashboard.charts.axes import Scale, place
from gateway.dashboard.units import DASH, in_unit, trimmed

Point = tuple[float, float | None]
"""Unix seconds and a value; None where the value at that time is unknown."""
TIPS = 72
"""Most tooltips of a chart."""
ROWS = 24
"""Most rows of a chart's table: the latest."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line. All series of a chart have the same times."""

    name: str
    points: Sequence[Point]


def line_chart(
    title: str, series: Sequence[Series], unit: str, *, height: float = 168, floor: float | None = 0.0,
    ceiling: float | None = None,
) -> Markup:  # fmt: skip
    """A line chart; empty without data. `unit`: one of `units.UNITS`.

    The vertical axis begins at the least value, but not above `floor`, and ends not below `ceiling`.
    """
    known = [(t, v) for one in series for t, v in one.points if v is not None]
    if not known:
        return Markup("")
    times = [t for t, _ in series[0].points]
    values = [v for _, v in known]
    low = min(values) if floor is None else min(*values, floor)
    ticks = axes.round_ticks(low, max(*values, low, ceiling if ceiling is not None else low))
    x, y = Scale(times[0], times[-1]), Scale(ticks[0], ticks[-1], height)
    svg = (
        axes.y_axis(ticks, y, [trimmed(in_unit(tick, unit)) for tick in ticks])
        + axes.x_axis(axes.time_ticks(times[0], times[-1]), x, height)
        + _paths(series, x, y)
        + _hints(series, x, unit)
    )
    last = [next((v for _, v in reversed(one.points) if v is not None), None) for one in series]
    legend = axes.legend_of([(one.name, in_unit(v, unit)) for one, v in zip(series, last, strict=True)])
    return axes.figure(
        svg, title=title, description=_description(series, unit), height=height, legend=legend,
        table=_table(series, unit),
    )


def sparkline(title: str, points: Sequence[Point], unit: str, *, height: float = 36) -> Markup:
    """A small line without axes, to stand beside a figure; empty with fewer than two known values."""
    known = [v for _, v in points if v is not None]
    if len(known) < 2:
        return Markup("")
    x, y = Scale(points[0][0], points[-1][0]), Scale(min(0.0, *known), max(known) or 1.0, height - 4)
    svg = f'<g transform="translate(0 2)">{_paths([Series(title, points)], x, y)}</g>'
    label = f"{title}: {_range(known, unit)}"
    return Markup(  # noqa: S704  escaped
        f'<svg class="spark" role="img" aria-label="{escape(label)}" width="100%" height="{place(height)}">{svg}</svg>'
    )


def _paths(series: Sequence[Series], x: Scale, y: Scale) -> str:
    """The lines, in a plot stretched to the full width: with gaps at unknown values, and single points as dots."""
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
    """Tooltips with the values at each time."""
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
    return "\n".join(f"{one.name}: {in_unit(one.points[i][1], unit)}" for one in series)


def _description(series: Sequence[Series], unit: str) -> str:
    """The chart's text alternative."""
    parts = []
    for one in series:
        known = [v for _, v in one.points if v is not None]
        parts.append(f"{one.name}: {_range(known, unit)}" if known else f"{one.name}: nothing known")
    return "; ".join(parts)


def _range(known: Sequence[float], unit: str) -> str:
    return f"{in_unit(known[-1], unit)} at the end, between {in_unit(min(known), unit)} and {in_unit(max(known), unit)}"


def _table(series: Sequence[Series], unit: str) -> str:
    times = [t for t, _ in series[0].points][-ROWS:]
    offset = len(series[0].points) - len(times)
    rows = [
        [_when(t), *(in_unit(one.points[offset + i][1], unit) if one.points else DASH for one in series)]
        for i, t in enumerate(times)
    ]
    return axes.table_of(["Time (UTC)", *(one.name for one in series)], rows[::-1])


def _when(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%-d %b %H:%M")
