"""The experiment that counts how often certificates are kept, on a small world."""

from __future__ import annotations

from dataclasses import replace
from math import isnan

import pytest

from cascade.evaluate import evaluate
from cascade.guarantee import certified, guarantee, reference_of
from cascade.rows import TrainingSettings
from routers.outcomes import DataError
from tests.cascade.worlds import logged


def test_the_reference_is_the_most_expensive_model_or_the_named_one():
    """It is determined before anything is measured, so chance in the rows can't influence it."""
    assert reference_of(logged(60), "") == 2 and reference_of(logged(60), "middle") == 1
    with pytest.raises(DataError, match="tiny"):
        reference_of(logged(60), "tiny")
    with pytest.raises(DataError, match="40 complete rows"):
        certified(logged(40), 0.9, 0.95)


def test_floors_are_kept_on_random_splits():
    """The share of breaches is at most the promised one, and the floor costs less than the reference."""
    setting = TrainingSettings(router="linear", estimate_folds=2, folds=2)
    report = guarantee(logged(600), floors=(0.9,), splits=60, trainings=2, setting=setting)
    found = report["0.90"]
    assert found["broken"] <= 0.05 + 2 * (0.05 * 0.95 / 60) ** 0.5
    assert found["cost_ratio"] < 1.0 and found["cost_against_hindsight_of_each_split"] >= 1.0


def test_the_report_states_means_and_spread():
    """Each figure of an evaluation over splits has its mean and standard deviation."""
    seen: list[tuple[int, int]] = []
    setting = TrainingSettings(router="linear", estimate_folds=2, folds=2)
    report = evaluate(logged(240), splits=2, setting=setting, progress=lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)] and report["n_queries"] == 240
    assert report["matching"]["cost_ratio"]["mean"] < 1.0
    assert {"mean", "sd"} == set(report["best_quality"]["quality_difference"])
    assert report["aiq"]["mean"] > report["zero_router_aiq"]["mean"]


def test_free_models_have_no_cost_ratio():
    """If all models are free, the report has the quality and no cost ratio."""
    log = logged(240)
    free = replace(log.data, cost_usd=0.0 * log.data.cost_usd, checked_cost_usd=0.0 * log.data.cost_usd)
    setting = TrainingSettings(router="linear", estimate_folds=2, folds=2)
    report = evaluate(replace(log, data=free), splits=1, setting=setting)
    assert isnan(report["matching"]["cost_ratio"]["mean"]) and report["aiq"]["mean"] > 0.5
    found = guarantee(replace(log, data=free), floors=(0.9,), splits=4, trainings=1, setting=setting)["0.90"]
    assert isnan(found["cost_ratio"]) and 0.0 <= found["broken"] <= 1.0
