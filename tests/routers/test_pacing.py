"""A budget that refills: never overspent, and spent where it improves quality most."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers.bench.pacing import (
    BUDGET_USD,
    KINDS,
    RESTARTS_S,
    WEEKENDS,
    EveryDay,
    best_fixed_rate,
    line,
    spent_by_pacing,
    traffic,
    worst_day,
)
from routers.day_shape import DAY_S, HOUR_S
from routers.pacing import SAVED, Purse, cost_weight_of, paced, weighed
from routers.select import exchange_rate
from routers.types import Knobs


@pytest.mark.parametrize("kind", KINDS)
def test_no_day_spends_more_than_the_budget(kind: str) -> None:
    """In steady, daily, bursty and adversarial traffic every 24 hours stay within the budget, although always asking
    the most expensive model would cost several times as much.
    """
    came = traffic(kind, seed=1, days=2, per_day=1500)
    quality, cost = spent_by_pacing(came)
    assert worst_day(came.time_s, cost) <= BUDGET_USD * (1 + 1e-9)
    assert came.cost[:, 2].sum() > 2 * 2 * BUDGET_USD
    assert quality.mean() > 0.3


def test_steady_traffic_is_near_the_best_fixed_rate() -> None:
    """Without knowing the traffic, it reaches 97 % of the quality of the best fixed exchange rate in hindsight."""
    came = traffic("steady", seed=2, days=2)
    quality, cost = spent_by_pacing(came)
    assert quality.mean() >= 0.97 * best_fixed_rate(came, BUDGET_USD)
    assert cost.sum() >= 0.9 * 2 * BUDGET_USD


@pytest.mark.parametrize("kind", ["daily", "sharp"])
def test_a_daily_peak_is_near_the_best_fixed_rate(kind: str) -> None:
    """After a day has shown the peak, what the night leaves is spent there: 96 % of the quality of the best fixed
    exchange rate in hindsight.
    """
    came = traffic(kind, seed=3, days=4)
    quality, _ = spent_by_pacing(came)
    assert quality[came.time_s >= DAY_S].mean() >= 0.96 * best_fixed_rate(came, BUDGET_USD)


def test_a_restart_recovers_the_purse_from_the_journal() -> None:
    """With four restarts a day the quality is within a point of a purse that was never restarted, and the budget is
    kept; without the journal the day's shape is never learned.
    """
    came = traffic("daily", seed=4)
    later = came.time_s >= DAY_S
    never, _ = spent_by_pacing(came)
    quality, cost = spent_by_pacing(came, restarts_s=RESTARTS_S)
    forgot, _ = spent_by_pacing(came, restarts_s=RESTARTS_S, recalls=False)
    assert quality[later].mean() > never[later].mean() - 0.01 > forgot[later].mean() + 0.02
    assert worst_day(came.time_s, cost) <= BUDGET_USD * (1 + 1e-9)


@pytest.mark.parametrize("kind", WEEKENDS)
def test_weekends_with_another_shape_are_near_the_best_fixed_rate(kind: str) -> None:
    """Over four weeks the quality is at least that of the best fixed rate in hindsight and no less than with equal
    days; where weekends differ, it is a point more.
    """
    came = traffic(kind, seed=5, days=28, per_day=600)
    quality, cost = spent_by_pacing(came, 0.3)
    alike, _ = spent_by_pacing(came, 0.3, EveryDay)
    assert worst_day(came.time_s, cost) <= 0.3 * (1 + 1e-9)
    assert quality.mean() > best_fixed_rate(came, 0.3)
    assert quality.mean() > alike.mean() + (-0.001 if kind == "same weekends" else 0.01)


def test_a_purse_is_restored_from_past_spending() -> None:
    """Its level is restored except for debts, and past spending counts for a day."""
    purse, other = Purse.new(24.0, 0.0), Purse.new(24.0, 2 * HOUR_S)
    purse.spend(1.0)
    purse.refill(2 * HOUR_S)
    other.recall([(60.0, 1.0)], 2 * HOUR_S)
    assert other.level_usd == pytest.approx(purse.level_usd, abs=0.05) and other.spent_usd == 1.0
    other.refill(DAY_S + 120.0)
    assert other.spent_usd == 0.0
    poor = Purse.new(24.0, 2 * HOUR_S)
    poor.recall([(60.0, 50.0)], 2 * HOUR_S)
    assert (poor.level_usd, poor.left_usd) == (0.0, -26.0)


@given(st.lists(st.tuples(st.floats(0, 20_000), st.floats(0, 1)), max_size=200))
def test_any_day_is_within_the_budget_whatever_is_asked(steps: list[tuple[float, float]]) -> None:
    """Spending at most what the purse allows stays within the budget in every window of 24 hours."""
    purse, now, times, costs = Purse.new(10.0, 0.0), 0.0, [], []
    for wait_s, share in steps:
        now += wait_s
        limit = paced(Knobs(), purse, now).max_cost_usd
        assert limit is not None
        purse.spend(share * limit)
        times.append(now)
        costs.append(share * limit)
    if times:
        assert worst_day(np.array(times), np.array(costs)) <= 10.0 + 1e-9


@given(st.floats(0, 1e6))
def test_a_rate_has_a_cost_weight(rate: float) -> None:
    """The cost weight of a rate has that exchange rate."""
    assert exchange_rate(cost_weight_of(rate)) == pytest.approx(rate, rel=1e-6, abs=1e-12)


def test_a_cost_weight_is_raised_and_a_quality_floor_is_not() -> None:
    """With a floor alone the cheapest model that meets it is chosen anyway. A purse in debt has nothing left to spend.
    """
    purse = Purse.new(24.0, 0.0)
    purse.spend(30.0)
    both = paced(Knobs(min_quality=0.5, cost_weight=0.1), purse, 0.0)
    assert both.cost_weight is not None and both.cost_weight > 0.9 and both.max_cost_usd == 0.0
    assert weighed(Knobs(min_quality=0.5), purse, 0.0) == Knobs(min_quality=0.5)


def test_fullness_counts_the_last_24_hours() -> None:
    """If their spending leaves half of the reserve, even a full purse counts as half full."""
    purse = Purse(24.0, 24.0 * SAVED, 0.0, spent_usd=24.0 - 24.0 / 32)
    assert purse.fullness == pytest.approx(0.5)


def test_an_emptier_purse_asks_more_for_a_dollar() -> None:
    """The cost weight rises as the purse empties, and falls as it refills."""
    purse = Purse.new(24.0, 0.0)
    weights: list[Any] = []
    for _ in range(4):
        weights.append(paced(Knobs(), purse, 0.0).cost_weight)
        purse.spend(24.0 * SAVED / 8)
    assert weights == sorted(weights) and weights[0] != weights[-1]
    assert weights[0] > paced(Knobs(), purse, DAY_S).cost_weight


def test_pacing_only_tightens_the_requests_knobs() -> None:
    """A stated cost weight, limit or quality floor stays in force."""
    purse = Purse.new(24.0, 0.0)
    purse.refill(DAY_S)
    assert paced(Knobs(cost_weight=0.9), purse, DAY_S).cost_weight == 0.9
    assert paced(Knobs(max_cost_usd=0.001), purse, DAY_S).max_cost_usd == 0.001
    assert paced(Knobs(min_quality=0.9), purse, DAY_S).cost_weight is None


def test_a_clock_that_goes_back_refills_nothing() -> None:
    """The caller's clock may be wrong."""
    purse = Purse.new(24.0, 1000.0)
    level = purse.level_usd
    purse.refill(0.0)
    assert purse.level_usd == level and purse.time_s == 1000.0


def test_a_clock_that_was_days_ahead_does_not_stop_the_refill() -> None:
    """Once it is right again the purse refills; what was spent meanwhile counts for a day."""
    purse = Purse.new(24.0, 10 * DAY_S)
    weighed(Knobs(), purse, 13 * DAY_S)
    purse.spend(2.0)
    weighed(Knobs(), purse, 10 * DAY_S)
    assert purse.spent_usd == 2.0 and purse.level_usd == pytest.approx(0.4)
    weighed(Knobs(), purse, 10.5 * DAY_S)
    assert purse.fullness == 1.0 and purse.spent_usd == 2.0
    weighed(Knobs(), purse, 11 * DAY_S)
    assert purse.spent_usd == 0.0


def test_an_hour_refills_its_share_less_the_reserve() -> None:
    """An hour of an even day refills 15/16 of 1/24 of the budget, also where earlier spending is recalled."""
    purse = Purse(24.0, 0.0, 0.0)
    purse.refill(HOUR_S)
    assert purse.level_usd == pytest.approx(15 / 16)
    other = Purse.new(24.0, HOUR_S)
    other.recall([(0.0, 1.0), (HOUR_S, 0.5)], HOUR_S)
    assert other.level_usd == pytest.approx(1.2 - 1.0 + 15 / 16 - 0.5) and other.left_usd == 22.5


def test_spending_within_a_minute_is_one_entry() -> None:
    """It leaves the last 24 hours when the last of its spending does, or later."""
    purse = Purse.new(24.0, 0.0)
    for now_s in (0.0, 30.0, 59.0, 61.0, 100.0):
        purse.refill(now_s)
        purse.spend(0.1)
    assert [round(usd, 9) for _, usd in purse.spent] == [0.3, 0.2]
    purse.refill(DAY_S + 59.0)
    assert purse.spent_usd == pytest.approx(0.5)
    purse.refill(DAY_S + 60.0)
    assert purse.spent_usd == pytest.approx(0.2)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_an_invalid_budget_is_refused(budget: float) -> None:
    """Only a positive amount can be paced."""
    with pytest.raises(ValueError, match="budget_usd_per_day"):
        Purse.new(budget, 0.0)


def test_the_gap_to_the_best_fixed_rate_is_paired() -> None:
    """Seeds make the quality uncertain, but not its difference to the best fixed rate on the same traffic."""
    row = dict.fromkeys(("worst_day_share", "spent_share", "always_dear", "answered", "gain"), 0.5)
    rows = [{**row, "quality": q, "later_quality": q, "best_fixed_rate": q + 0.01} for q in (0.6, 0.8)]
    told = line("steady", rows)
    assert "quality 0.7000 (+-1.2706)" in told
    assert "best fixed rate 0.7100 (+-1.2706), 0.0100 (+-0.0000) more" in told
