"""Charts are well-formed and have their figures in words, whatever the data."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dashboard.charts import (
    Bin,
    Part,
    Series,
    Spot,
    calibration_chart,
    line_chart,
    scatter_chart,
    share_bar,
    sparkline,
    whisker,
)
from gateway.dashboard.charts.axes import Scale, round_ticks, time_ticks

VALUES = st.one_of(st.none(), st.floats(min_value=-1e9, max_value=1e9))


def parsed(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<x>{markup}</x>")


@given(st.lists(VALUES, min_size=1, max_size=40), st.sampled_from(["usd", "s", "share", "count", "quality"]))
def test_a_line_chart_is_well_formed(values: list[float | None], unit: str) -> None:
    """Line charts with gaps, with one point, and without any known value (then there is no chart)."""
    points = [(1e9 + 60 * i, value) for i, value in enumerate(values)]
    drawn = line_chart("Requests & <more>", [Series("a<b", points), Series("c", points)], unit)
    if all(value is None for value in values):
        assert drawn == ""
        return
    tree = parsed(drawn)
    assert "nan" not in drawn and "inf" not in drawn
    assert tree.find(".//desc") is not None and "at the end" in str(tree.find(".//desc").text)  # type: ignore[union-attr]
    assert len(tree.findall(".//tbody/tr")) == min(len(values), 24)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_span_the_data(low: float, span: float) -> None:
    """No more than a handful; the first at or below the least value, the last at or above the greatest."""
    high = low + span
    if not high > low:
        return
    ticks = round_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + span * 1e-2 and ticks[-1] >= high - span * 1e-2


@pytest.mark.parametrize("span_s", [600, 3600, 86400, 7 * 86400, 30 * 86400])
def test_time_ticks_are_few_and_inside(span_s: int) -> None:
    """Time ticks are right for every window of the dashboard."""
    ticks = time_ticks(1e9, 1e9 + span_s)
    assert 2 <= len(ticks) <= 7
    assert all(1e9 <= at <= 1e9 + span_s for at, _ in ticks)


@given(
    st.lists(
        st.tuples(st.floats(0, 10), st.floats(0, 1), st.one_of(st.none(), st.floats(0, 0.5))), min_size=1, max_size=8
    )
)
def test_a_frontier_is_well_formed(rows: list[tuple[float, float, float | None]]) -> None:
    """Scatter charts with and without intervals name every point in their table."""
    spots = [
        Spot(f"m{i}", cost, worth) if reach is None
        else Spot(f"m{i}", cost, worth, quality_low=worth - reach, quality_high=worth + reach)
        for i, (cost, worth, reach) in enumerate(rows)
    ]  # fmt: skip
    tree = parsed(scatter_chart("Frontier", spots, sorted((cost, worth) for cost, worth, _ in rows)))
    assert len(tree.findall(".//tbody/tr")) == len(rows)
    assert len(tree.findall(".//g[@class='spot model']")) == len(rows)


def test_small_marks_are_well_formed() -> None:
    """These are interval, shares, sparkline and calibration."""
    for drawn in (
        whisker(0.1, -0.2, 0.4), whisker(0, 0, 0), share_bar("Who", [Part("a", 0.25), Part("b", 0.75)]),
        sparkline("Errors", [(0, 1.0), (60, None), (120, 2.0)], "count"),
        calibration_chart("Calibration", [Bin(0.1, 0.2, 0.05, 0.4, 12), Bin(0.9, 0.85, 0.8, 0.95, 90)]),
    ):
        parsed(drawn)
    assert sparkline("Errors", [(0, 1.0)], "count") == ""


def test_a_scale_maps_its_ends_to_the_plots() -> None:
    """Pixels grow downward; an empty range is in the middle."""
    scale = Scale(10.0, 20.0, 200.0)
    assert (scale(10.0), scale(20.0), scale.down(20.0)) == (0.0, 200.0, 0.0)
    assert Scale(5.0, 5.0)(5.0) == 50.0
