"""When in a day its requests come: even until a day has shown it, then as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers.day_shape import DAY_S, HOUR_S, DayShape


def after(*days: dict[int, int]) -> DayShape:
    """Requests by hour, of days that are over."""
    shape = DayShape()
    shape.turn(0.0)
    for day, hours in enumerate(days):
        for hour, requests in sorted(hours.items()):
            for _ in range(requests):
                shape.count(day * DAY_S + hour * HOUR_S)
    shape.turn(len(days) * DAY_S)
    return shape


def at(shape: DayShape, hour: int) -> float:
    return shape.share(hour * HOUR_S, (hour + 1) * HOUR_S)


@given(
    st.lists(st.floats(0, 5 * DAY_S), max_size=50), st.floats(0, 10 * DAY_S), st.floats(0, DAY_S), st.floats(0, DAY_S)
)
def test_every_24_hours_bring_a_day(times: list[float], since: float, wait: float, more: float) -> None:
    """Whatever was seen; shares of spans add up and none is negative."""
    shape = DayShape()
    for time in sorted(times):
        shape.count(time)
    shape.turn(6 * DAY_S)
    middle, end = since + wait, since + wait + more
    assert shape.share(since, since + DAY_S) == pytest.approx(1.0)
    assert shape.share(since, end) == pytest.approx(shape.share(since, middle) + shape.share(middle, end), abs=1e-9)
    assert shape.share(since, middle) >= -1e-12


def test_the_first_day_is_even() -> None:
    """Nothing is concluded from a day that is not over."""
    shape = DayShape()
    for _ in range(1000):
        shape.count(12 * HOUR_S)
    assert at(shape, 3) == pytest.approx(1 / 24)


def test_a_peak_is_expected_where_it_was() -> None:
    """And at another hour some days after it has moved."""
    assert at(after({12: 1800, 3: 200}), 12) > 0.7
    moved = after(*[{12: 1000}] * 3, *[{18: 1000}] * 6)
    assert at(moved, 18) > 0.8 and at(moved, 12) < 0.1


def test_one_busy_day_does_not_outweigh_the_others() -> None:
    """Each day counts as one, however many requests it had."""
    usual = [dict.fromkeys(range(24), 50)] * 4
    assert at(after(*usual, {5: 50_000}), 5) < 0.5


def test_few_requests_say_little() -> None:
    """Three at noon are no reason to save everything for noon."""
    assert at(after({12: 3}), 12) < 0.3


def test_who_begins_in_the_evening_does_not_take_it_for_the_day() -> None:
    """Of the hours before nothing is known; a morning seen later counts."""
    shape = DayShape()
    shape.turn(20.5 * HOUR_S)
    for i in range(210):
        shape.count((20.5 + i / 60) * HOUR_S)
    shape.turn(DAY_S)
    assert [at(shape, hour) for hour in range(24)] == pytest.approx([1 / 24] * 24)
    for _ in range(1000):
        shape.count(DAY_S + 8 * HOUR_S)
    shape.turn(2 * DAY_S)
    assert at(shape, 8) > 0.5


def test_days_without_requests_are_no_days() -> None:
    """A quiet week forgets nothing."""
    shape = after({12: 1000})
    before = at(shape, 12)
    shape.turn(9 * DAY_S)
    assert at(shape, 12) == before


def test_a_clock_that_was_days_ahead_teaches_nothing() -> None:
    """Neither the day that it invented nor the hours of this one before it was set right."""
    shape = after(dict.fromkeys(range(24), 50))
    before = [at(shape, hour) for hour in range(24)]
    shape.turn(4 * DAY_S)
    for _ in range(1000):
        shape.count(4 * DAY_S)
    for i in range(690):
        shape.count(DAY_S + (12.5 + i / 60) * HOUR_S)
    shape.turn(2 * DAY_S)
    assert [at(shape, hour) for hour in range(24)] == pytest.approx(before, rel=0.05)
