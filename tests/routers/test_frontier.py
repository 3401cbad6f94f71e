from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers.frontier import (
    aiq,
    aiq_repo,
    apgr,
    apgr_repo,
    arena_score,
    calls_for,
    cost_at,
    cost_saved,
    gap_recovered,
    hull,
    quality_at,
)

Points = list[tuple[float, float]]
points = st.lists(st.tuples(st.floats(0.001, 10), st.floats(0, 1)), min_size=1, max_size=30)
SQUARE = np.array([[1.0, 0.5], [3.0, 0.9]])


@given(points)
def test_the_hull_is_concave_and_above_every_point(given: Points) -> None:
    """No point lies above the hull, and its quality rises with cost at a falling slope."""
    chain = hull(given)
    assert all(y <= quality_at(chain, x) + 1e-9 for x, y in given)
    assert (np.diff(chain[:, 0]) > 0).all()
    assert (np.diff(chain[:, 1]) > 0).all()
    slopes = np.diff(chain[:, 1]) / np.diff(chain[:, 0])
    assert (np.diff(slopes) <= 1e-6 * np.abs(slopes[:-1])).all()


@given(points)
def test_the_hull_of_a_hull_is_itself(given: Points) -> None:
    """A second pass drops no point."""
    chain = hull(given)
    assert np.array_equal(hull(chain), chain)


@given(points, points)
def test_more_points_never_lower_the_frontier(some: Points, more: Points) -> None:
    """AIQ of the single models alone is at most that of a router together with them."""
    low, high = hull(some)[0, 0], 10.5
    assert aiq(hull(some), low, high) <= aiq(hull([*some, *more]), low, high) + 1e-9


def test_figures_of_a_frontier_computed_by_hand() -> None:
    """It is a line from (1, .5) to (3, .9), over costs from 0 to 4."""
    assert aiq(SQUARE, 0.0, 4.0) == pytest.approx((0.5 + 2 * 0.7 + 0.9) / 4)
    assert aiq_repo(SQUARE, 4.0) == pytest.approx((2 * 0.7 + 0.9) / 4)
    assert quality_at(SQUARE, 2.0) == pytest.approx(0.7)
    assert cost_at(SQUARE, 0.7) == pytest.approx(2.0)
    assert cost_at(SQUARE, 0.4) == 1.0
    assert cost_at(SQUARE, 0.95) == float("inf")


def test_cost_saved_is_against_the_best_single_model() -> None:
    """A router that reaches the best model's quality at half its cost saves half; one that never reaches it saves none.
    """
    assert cost_saved(SQUARE, (6.0, 0.9), 1.0, 7 / 9) == pytest.approx([0.5, 1 - 2 / 6])
    assert cost_saved(SQUARE, (6.0, 0.95), 1.0) == [0.0]


def test_nothing_is_saved_against_a_free_model() -> None:
    """That holds for any share of its quality; where all models are free, the area is the last quality."""
    assert cost_saved(SQUARE, (0.0, 0.9), 1.0, 0.95) == [0.0, 0.0]
    free = np.array([[0.0, 0.7]])
    assert aiq_repo(free, 0.0) == 0.7 and aiq(free, 0.0, 0.0) == 0.7


def test_a_random_score_recovers_half_the_gap() -> None:
    """APGR of random scores is .5, of the oracle more than 1, and of its opposite less than 0."""
    rng = np.random.default_rng(0)
    weak, strong = (rng.random(20_000) < 0.6).astype(float), (rng.random(20_000) < 0.8).astype(float)
    assert apgr(gap_recovered(rng.random(20_000), weak, strong)) == pytest.approx(0.5, abs=0.02)
    assert apgr(gap_recovered(strong - weak, weak, strong)) > 1
    assert apgr(gap_recovered(weak - strong, weak, strong)) < 0


def test_the_papers_form_of_apgr_is_near_the_exact_one() -> None:
    """Ten points of a straight line have a mean of .55 and an area of .5."""
    line = np.column_stack([np.linspace(0, 1, 101)] * 2)
    assert apgr(line) == pytest.approx(0.5)
    assert apgr_repo(line) == pytest.approx(0.55)


def test_calls_for_reads_the_running_maximum() -> None:
    """A curve that falls after reaching its target has still reached it."""
    curve = np.array([[0, 0], [0.2, 0.6], [0.4, 0.4], [1.0, 1.0]])
    assert calls_for(curve, 0.5) == 0.2
    assert calls_for(curve, 0.8) == 1.0
    assert np.isnan(calls_for(curve, 1.1))


@pytest.mark.parametrize(("accuracy", "cost", "score"), [(0.690, 0.0475, 0.697), (0.7396, 10.02, 0.643)])
def test_arena_scores_of_the_leaderboard(accuracy: float, cost: float, score: float) -> None:
    """Two published rows are reproduced."""
    assert arena_score(np.array([[cost / 1000, accuracy]])) == pytest.approx(score, abs=0.001)


def test_the_arena_score_is_the_best_points_within_its_prices() -> None:
    """Costs below $0.0044 or above $200 per 1,000 queries count as these bounds."""

    def point(cost: float, accuracy: float) -> float:
        return arena_score(np.array([[cost / 1000, accuracy]]))

    assert point(0.0, 0.7) == pytest.approx(point(0.0044, 0.7)) and point(0.0044, 0.7) == pytest.approx(0.77 / 1.07)
    assert point(200.0, 0.9) == point(900.0, 0.9) == 0.0
    assert arena_score(np.array([[0.0, 0.4], [0.0001, 0.8], [0.1, 0.9]])) == point(0.1, 0.8)
