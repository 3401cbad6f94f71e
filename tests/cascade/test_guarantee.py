"""The experiment that counts kept promises, on a small world."""

from __future__ import annotations

from cascade.evaluate import Setting, evaluate
from cascade.guarantee import guarantee
from tests.cascade.worlds import logged


def test_floors_are_kept_on_fresh_halves():
    """Breaches stay within the promised share, and the floor is bought for less than the reference."""
    report = guarantee(
        logged(600), floors=(0.9,), splits=60, trainings=2, setting=Setting(router="linear", estimate_folds=2, folds=2)
    )
    found = report["0.90"]
    assert found["broken"] <= 0.05 + 2 * (0.05 * 0.95 / 60) ** 0.5
    assert found["cost_ratio"] < 1.0 and found["cost_against_hindsight_of_each_split"] >= 1.0


def test_the_report_states_means_and_spread():
    """Figures of an evaluation over splits, each with its standard deviation."""
    seen: list[tuple[int, int]] = []
    setting = Setting(router="linear", estimate_folds=2, folds=2)
    report = evaluate(logged(240), splits=2, setting=setting, progress=lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)] and report["n_queries"] == 240
    assert report["matching"]["cost_ratio"]["mean"] < 1.0
    assert {"mean", "sd"} == set(report["best_quality"]["quality_difference"])
    assert report["aiq"]["mean"] > report["zero_router_aiq"]["mean"]
