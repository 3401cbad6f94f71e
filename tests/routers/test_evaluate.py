from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from routers import evaluate
from routers.evaluate import (
    Bench,
    PolicyFamily,
    auroc,
    calibration,
    compared,
    operating_point,
    paired,
    rate_matching,
    swept,
)
from tests.routers.worlds import world


def bench(n: int = 400, seed: int = 0) -> tuple[Bench, np.ndarray]:
    data, truth = world(n, seed=seed)
    costs = np.outer(np.ones(n), [1.0, 5.0, 30.0])
    return Bench(data.scores, costs, 2), truth


def test_aiq_orders_routers_by_what_they_know() -> None:
    """The oracle is better than an informed router, and that one better than the zero router."""
    rows, truth = bench(2_000)
    policies = {
        "oracle": evaluate.oracle(rows),
        "router": swept(truth, rows.costs, rows),
        "zero": evaluate.singles(rows),
        "best": evaluate.best_single(rows),
    }
    point, drawn = compared(rows, policies, resamples=50)
    assert point["oracle"]["aiq"] > point["router"]["aiq"] + 0.05 > point["zero"]["aiq"] + 0.1
    assert point["best"]["cost_saved_100"] == pytest.approx(0.0, abs=1e-9)
    assert point["oracle"]["cost_saved_95"] > 0.5
    gap = paired(point, drawn, "router", "zero")["aiq"]
    assert 0 < gap["low"] < gap["value"] < gap["high"]


def test_intervals_contain_the_value_and_shrink_with_rows() -> None:
    """Four times the queries give about half the width."""
    widths = []
    for n in (300, 1_200):
        rows, truth = bench(n)
        point, drawn = compared(rows, {"router": swept(truth, rows.costs, rows)}, resamples=100)
        cell = evaluate.tabled(point, drawn)["router"]["quality_at_50"]
        assert cell["low"] <= cell["value"] <= cell["high"]
        widths.append(cell["high"] - cell["low"])
    assert 0.3 < widths[1] / widths[0] < 0.75


def test_the_first_bootstrap_row_is_the_data_itself() -> None:
    """Figures of the rows equal those computed without resampling."""
    rows, truth = bench()
    policy = swept(truth, rows.costs, rows)
    point, _ = compared(rows, {"router": policy}, resamples=3)
    alone = rows.singles()
    plain = evaluate.figures(policy.points(), alone, rows.best, max(policy.points()[:, 0]))
    assert {k: point["router"][k] for k in plain} == pytest.approx(plain)


def test_two_models_also_have_route_llm_figures() -> None:
    """APGR of the true probabilities lies between chance and the oracle."""
    rows, truth = bench(1_000)
    two = Bench(rows.scores[:, [0, 2]], rows.costs[:, [0, 2]], 1)
    policies = {"router": swept(truth[:, [0, 2]], two.costs, two), "oracle": evaluate.oracle(two)}
    point, _ = compared(two, policies, resamples=5)
    assert 0.6 < point["router"]["apgr"] < point["oracle"]["apgr"]
    assert point["router"]["cpt50"] < 0.5 < point["router"]["cpt80"] + 0.3


def test_the_operating_point_is_chosen_before_the_test() -> None:
    """The rate chosen on some rows reaches the best model's quality on others at a lower cost."""
    before, truth = bench(3_000)
    index = rate_matching(swept(truth, before.costs, before), before)
    after, unseen = bench(3_000, seed=7)
    found = operating_point(swept(unseen, after.costs, after), index, after)
    assert found["quality_difference"]["low"] > -0.03
    assert found["cost_ratio"]["high"] < 0.8


def test_figures_are_read_off_a_known_curve() -> None:
    """The curve rises evenly from the cheapest model's cost on; the operating point is computed by hand."""
    alone = np.array([[2.0, 0.4], [12.0, 0.9]])
    found = evaluate.figures(np.array([[2.0, 0.4], [12.0, 0.9]]), alone, 1, 20.0)
    assert (found["quality_at_10"], found["quality_at_50"]) == pytest.approx((0.45, 0.65))
    assert found["aiq"] == pytest.approx(0.65) and found["max_quality"] == 0.9
    two = Bench(np.tile([0.2, 0.9], (50, 1)), np.tile([1.0, 8.0], (50, 1)), 1)
    policy = PolicyFamily(np.full((1, 50), 2.0), np.full((1, 50), 0.6))
    point = operating_point(policy, 0, two)
    told = [point[name]["value"] for name in ("quality_difference", "cost_ratio", "mean_cost")]
    assert told == pytest.approx([-0.3, 0.25, 2.0])


def test_queries_answered_by_a_cheaper_model_are_counted() -> None:
    """All, none or half of them cost less than the best single model."""
    two = Bench(np.ones((100, 2)), np.tile([1.0, 10.0], (100, 1)), 1)
    half = np.where(np.arange(100) < 50, 1.0, 10.0)
    policy = PolicyFamily(np.stack([np.full(100, 1.0), half, np.full(100, 10.0)]), np.ones((3, 100)))
    kept = [operating_point(policy, index, two)["kept_cheaper"] for index in range(3)]
    assert [one["value"] for one in kept] == [1.0, 0.5, 0.0]
    assert 0.38 < kept[1]["low"] < 0.45 and 0.55 < kept[1]["high"] < 0.62


def test_a_match_by_luck_is_not_chosen() -> None:
    """Of the rates that reach the quality, one that does so by less than a standard error gives way to a more expensive
    one that does so safely; if none does, the cheapest is chosen.
    """
    best = np.tile([1.0, 1.0, 0.0, 0.0], 25)
    rows = Bench(np.column_stack([best, best]), np.ones((100, 2)), 0)
    swapped = np.tile([1.0, 0.0, 1.0, 0.0], 25)
    scores = np.stack([best - 0.01, swapped, np.maximum(best, swapped), best])
    costs = np.repeat([[0.1], [0.2], [0.5], [1.0]], 100, axis=1)
    assert rate_matching(PolicyFamily(costs, scores), rows) == 2
    assert rate_matching(PolicyFamily(costs[[0, 1, 3]], scores[[0, 1, 3]]), rows) == 1


def test_without_a_match_the_best_quality_is_chosen() -> None:
    """A router worse than the best single model is reported at its best."""
    rows, _ = bench()
    worst = swept(np.tile([1.0, 0.0, 0.0], (400, 1)), rows.costs, rows)
    assert worst.points()[rate_matching(worst, rows), 1] == worst.points()[:, 1].max()


def test_true_probabilities_are_calibrated() -> None:
    """True probabilities have a small expected calibration error, their complements a large one."""
    data, truth = world(4_000)
    good: dict[str, Any] = calibration(truth, data.scores)
    bad: dict[str, Any] = calibration(1 - truth, data.scores)
    assert good["ece"] < 0.03 < 0.2 < bad["ece"]
    assert good["auroc"] == pytest.approx(1 - bad["auroc"], abs=1e-9)
    assert good["brier"] < bad["brier"]
    assert good["auroc"] == pytest.approx(roc_auc_score(data.scores.ravel(), truth.ravel()))


def test_auroc_counts_ties_half() -> None:
    """A constant score has .5 and a perfect one 1; with a single class it is undefined."""
    right = np.array([True, False, True])
    assert auroc(np.ones(3), right) == 0.5
    assert auroc(np.array([0.9, 0.1, 0.8]), right) == 1.0
    assert np.isnan(auroc(np.ones(3), np.ones(3, bool)))
