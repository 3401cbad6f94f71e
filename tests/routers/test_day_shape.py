"""The shape of a day's requests: even until a day has been seen, then as seen, with weekends apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers.day_shape import DAY_S, HOUR_S, HOURS, WEEK, DayShape, shared_out

WORK, LEISURE = dict.fromkeys(range(8, 17), 100), dict.fromkeys(range(19, 23), 80)
WEEK_OF = [*[WORK] * 5, LEISURE, LEISURE]


def hours_of(*days: dict[int, int]) -> dict[int, float]:
    """Requests by hour; all hours of the first day are known."""
    return {0: 0.0} | {day * HOURS + hour: float(n) for day, hours in enumerate(days) for hour, n in hours.items()}


def after(*days: dict[int, int]) -> DayShape:
    return DayShape(hours_of(*days), len(days) * DAY_S)


def at(shape: DayShape, hour: int, day: int = 0) -> float:
    since_s = day * DAY_S + hour * HOUR_S
    return shape.share(since_s, since_s + HOUR_S)


@given(
    st.dictionaries(st.integers(0, 21 * HOURS), st.floats(0, 1e6), max_size=60),
    st.floats(0, 30 * DAY_S), st.floats(0, DAY_S), st.floats(0, DAY_S),
)  # fmt: skip
def test_no_24_hours_exceed_one_days_share(hours: dict[int, float], since: float, wait: float, more: float) -> None:
    """Whatever was seen, shares of spans add up, and none is negative."""
    shape = DayShape(hours, 21 * DAY_S)
    middle, end = since + wait, since + wait + more
    assert shape.share(since, since + DAY_S) <= 1.0 + 1e-9
    assert shape.share(since, end) == pytest.approx(shape.share(since, middle) + shape.share(middle, end), abs=1e-9)
    assert shape.share(since, middle) >= -1e-12


def test_the_first_day_is_even() -> None:
    """An unfinished day, and one that a wrong clock invented, are not learned from."""
    shape = DayShape({12: 1000.0, 3 * HOURS + 5: 1000.0}, 12 * HOUR_S)
    assert at(shape, 3) == pytest.approx(1 / 24)


def test_a_peak_is_expected_where_it_was() -> None:
    """After the peak has moved, it is expected at the new hour some days later."""
    assert at(after({12: 1800, 3: 200}), 12) > 0.7
    moved = after(*[{12: 1000}] * 3, *[{18: 1000}] * 6)
    assert at(moved, 18) > 0.8 and at(moved, 12) < 0.1


def test_one_busy_day_does_not_outweigh_the_others() -> None:
    """Each day has the same weight, however many requests it had."""
    usual = [dict.fromkeys(range(24), 50)] * 4
    assert at(after(*usual, {5: 50_000}), 5) < 0.5


def test_few_requests_change_the_shape_little() -> None:
    """Three requests at noon don't reserve the budget for noon."""
    assert at(after({12: 3}), 12) < 0.3


def test_hours_before_the_first_request_are_unknown() -> None:
    """A gateway started in the evening doesn't take the evening for the whole day; a morning seen later counts."""
    evening = {20: 60.0, 21: 60.0, 22: 60.0, 23: 60.0}
    assert [at(DayShape(evening, DAY_S), hour) for hour in range(24)] == pytest.approx([1 / 24] * 24)
    assert at(DayShape(evening | {HOURS + 8: 1000.0}, 2 * DAY_S), 8) > 0.5


def test_days_without_requests_do_not_count() -> None:
    """A quiet week changes nothing."""
    hours = hours_of({12: 1000})
    assert at(DayShape(hours, 9 * DAY_S), 12) == at(DayShape(hours, DAY_S), 12)


def test_weekends_are_predicted_as_weekends_were() -> None:
    """Once two weekends are known, hours that are busy on weekdays have a small share on weekends, and vice versa."""
    one, three = after(*WEEK_OF), after(*WEEK_OF * 3)
    assert one.trust == 0.0 and three.trust > 0.9
    assert sum(at(three, hour, day=5) for hour in WORK) < 0.1 < 0.7 < sum(at(three, hour, day=5) for hour in LEISURE)
    assert sum(at(three, hour, day=1) for hour in LEISURE) < 0.1 < 0.9 < sum(at(three, hour, day=1) for hour in WORK)


def test_equal_weekdays_stay_equal() -> None:
    """Days that differ without regularity make no difference between weekdays."""
    assert after(*[WORK] * 28).trust < 0.05
    draws = np.random.default_rng(3).integers(0, 20, 56)
    assert after(*[{int(hour): 500, int(hour) + 3: 500} for hour in draws]).trust < 0.3


def test_two_peaks_within_24_hours_share_the_budget() -> None:
    """Sunday's and Monday's peaks are less than a day apart: neither gets all, and nothing remains unused."""
    shape = after(*WEEK_OF * 3)
    sunday, monday = (sum(at(shape, hour, day) for hour in range(24)) for day in (6, 0))
    assert sunday < 0.9 and monday < 0.9
    windows = [shape.share(hour * HOUR_S, hour * HOUR_S + DAY_S) for hour in range(WEEK * HOURS)]
    assert max(windows) == pytest.approx(1.0)
    busy = [day * HOURS + hour for day, hours in enumerate(WEEK_OF) for hour in hours]
    for hour in busy:
        through = [windows[(hour - back) % len(windows)] for back in range(HOURS)]
        assert max(through) > 0.97, hour


def test_equal_days_have_a_budget_each() -> None:
    """Where every 24 hours have the same requests, each has a whole day's share."""
    day = np.random.default_rng(1).dirichlet(np.ones(HOURS))
    assert shared_out(np.tile(day, WEEK)) == pytest.approx(np.tile(day, WEEK))
