"""The experiment that counts how often certificates are kept, on a small world."""

from __future__ import annotations

from dataclasses import replace
from math import isnan

import numpy as np
import pytest

from cascade.calibrate import Family
from cascade.evaluate import evaluate
from cascade.guarantee import _counted, certified, guarantee, reference_of
from cascade.rows import TrainingSettings
from routers.outcomes import DataError
from tests.cascade.worlds import logged


def test_the_reference_is_the_most_expensive_model_or_the_named_one() -> None:
    """It is determined before anything is measured, so chance in the rows can't influence it."""
    assert reference_of(logged(60), "") == 2 and reference_of(logged(60), "middle") == 1
    with pytest.raises(DataError, match="tiny"):
        reference_of(logged(60), "tiny")
    with pytest.raises(DataError, match="40 complete rows"):
        certified(logged(40), 0.9, 0.95)


def test_floors_are_kept_on_random_splits() -> None:
    """The share of breaches is at most the promised one, and the floor costs less than the reference."""
    setting = TrainingSettings(router="linear", estimate_folds=2, folds=2)
    report = guarantee(logged(600), floors=(0.9,), splits=61, trainings=2, setting=setting)
    found = report["0.90"]
    assert report["splits"] == 60 and found["two_standard_errors"] == pytest.approx(2 * (0.05 * 0.95 / 60) ** 0.5)
    assert found["broken"] <= 0.05 + 2 * (0.05 * 0.95 / 60) ** 0.5
    assert found["cost_ratio"] < 1.0 and found["cost_against_hindsight_of_each_split"] >= 1.0


def test_breaches_refusals_and_costs_are_counted_on_the_test_rows() -> None:
    """The cost is that of the certified rule, or of the reference where the certificate is refused. Hindsight pays for
    the cheapest rule that kept the floor, or for the reference where none did.
    """
    def counted(*scores: float, spoilt: float | None = None) -> dict[str, float]:
        rules = np.tile(np.array(scores)[:, None], (1, 100))
        if spoilt is not None:
            rules[0, 80:] = spoilt
        prices = np.tile(np.array([0.5, 0.125])[: len(scores), None], (1, 100))
        family = Family(rules, prices, np.ones(100), np.full(100, 2.0), "large")
        return _counted(family, 0.75, 0.95, [np.arange(100)], 80, True)

    kept = counted(1.0, 0.5)
    assert (kept["broken"], kept["refused"], kept["cost_ratio"]) == (0.0, 0.0, 0.25)
    assert kept["hindsight_cost_ratio_of_each_split"] == kept["hindsight_cost_ratio_of_one_rule"] == 0.25
    assert counted(1.0, 0.75)["cost_ratio"] == 0.0625
    refused = counted(0.5)
    assert (refused["broken"], refused["refused"], refused["cost_ratio"]) == (0.0, 1.0, 1.0)
    assert refused["hindsight_cost_ratio_of_each_split"] == refused["hindsight_cost_ratio_of_one_rule"] == 1.0
    broken = counted(1.0, spoilt=0.0)
    assert (broken["broken"], broken["cost_ratio"]) == (1.0, 0.25)
    assert broken["hindsight_cost_ratio_of_each_split"] == broken["hindsight_cost_ratio_of_one_rule"] == 1.0


def test_the_report_states_means_and_spread() -> None:
    """Each figure of an evaluation over splits has its mean and standard deviation."""
    seen: list[tuple[int, int]] = []
    setting = TrainingSettings(router="linear", estimate_folds=2, folds=2)
    report = evaluate(logged(240), splits=2, setting=setting, progress=lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)] and report["n_queries"] == 240
    assert report["matching"]["cost_ratio"]["mean"] < 1.0
    assert {"mean", "sd"} == set(report["best_quality"]["quality_difference"])
    assert report["aiq"]["mean"] > report["zero_router_aiq"]["mean"]


def test_free_models_have_no_cost_ratio() -> None:
    """If all models are free, the report has the quality and no cost ratio."""
    log = logged(240)
    free = replace(log.data, cost_usd=0.0 * log.data.cost_usd, checked_cost_usd=0.0 * log.data.cost_usd)
    setting = TrainingSettings(router="linear", estimate_folds=2, folds=2)
    report = evaluate(replace(log, data=free), splits=1, setting=setting)
    assert isnan(report["matching"]["cost_ratio"]["mean"]) and report["aiq"]["mean"] > 0.5
    found = guarantee(replace(log, data=free), floors=(0.9,), splits=4, trainings=1, setting=setting)["0.90"]
    assert isnan(found["cost_ratio"]) and 0.0 <= found["broken"] <= 1.0
