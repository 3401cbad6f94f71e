"""A trained cascade is read back from its file, and plans with the models that are offered now."""

from __future__ import annotations

from itertools import repeat
from math import inf
from pathlib import Path

import numpy as np
import pytest

from cascade.artifact import load_cascade, save_cascade
from cascade.climb import climb
from cascade.planner import PlanRequest
from cascade.routing import RoutedCascade
from cascade.rows import TrainingSettings
from cascade.train import routed_cascade, train
from cascade.types import Outcome, PlanError
from routers.artifact import ArtifactError, Card, save_artifact
from routers.types import Choice, Estimate
from tests.cascade.worlds import MODELS, WORST, part


@pytest.fixture(scope="module")
def cascade() -> RoutedCascade:
    rows = part(200, seed=8)
    return routed_cascade(train(rows, TrainingSettings(estimate_folds=2, folds=2, depth=2)), rows)


def choice(*models: str) -> Choice:
    estimates = [Estimate(m, 0.7, 0.1, 1e-5) for m in models]
    return Choice("small", 1.0, dict.fromkeys(models, 1 / len(models)), estimates, {}, "", "r@1", models)


def test_a_cascade_survives_its_file(cascade: RoutedCascade, tmp_path: Path) -> None:
    """Every head, rule and figure is read back unchanged."""
    save_cascade(tmp_path / "c.safetensors", cascade, version="3")
    read = load_cascade(tmp_path / "c.safetensors")
    assert isinstance(read, RoutedCascade)
    assert read.posterior.space == cascade.posterior.space and read.typical == cascade.typical
    rows, space = part(20, seed=9), cascade.posterior.space
    for state in space.states():
        chances = cascade.posterior.chances(state, rows.scene)
        assert np.allclose(read.posterior.chances(state, rows.scene), chances)
        for mine, theirs in zip(cascade.rules, read.rules, strict=True):
            assert np.allclose(
                mine.options(space, state, chances, rows.prices), theirs.options(space, state, chances, rows.prices)
            )


def test_a_higher_share_of_quality_costs_more(cascade: RoutedCascade) -> None:
    """A floor of 70 % takes a cheaper rule than one of 100 %."""
    assert cascade.rule_for(0.7).rate > cascade.rule_for(1.0).rate


def test_a_floor_of_one_takes_the_best_rule(cascade: RoutedCascade) -> None:
    """If no rule reaches the required share of quality, the best one serves."""
    best = cascade.held_out[:, 1].max()
    at = cascade.rules.index(cascade.rule_for(inf))
    assert cascade.held_out[at, 1] >= best - 0.02 and cascade.rule_for(inf).rate <= cascade.rule_for(1.0).rate


def test_ineligible_models_are_never_asked(cascade: RoutedCascade) -> None:
    """A model that is not eligible, or has no price now, takes no part."""
    asked: list[str] = []
    climbing = climb(cascade.plan(PlanRequest(choice("small", "middle"), WORST, retries=0)), repeat(0.5))
    with pytest.raises(StopIteration):
        rung = next(climbing)
        while True:
            asked.append(rung.model)
            rung = climbing.send(Outcome(rung.model, "reset"))
    assert set(asked) == {"small", "middle"}


def test_an_unknown_model_is_a_fallback(cascade: RoutedCascade) -> None:
    """A model that the cascade wasn't trained with answers when all others have failed."""
    plan = cascade.plan(PlanRequest(choice(*MODELS, "new"), {**WORST, "new": 1e-3}))
    assert [step.model for step in plan.fallbacks] == ["new"]


def test_no_eligible_model_is_refused(cascade: RoutedCascade) -> None:
    """A plan without a rung is refused."""
    with pytest.raises(PlanError):
        cascade.plan(PlanRequest(choice("new"), {"new": 1e-3}))


def test_a_foreign_artefact_is_refused(tmp_path: Path) -> None:
    """A router's file is not a cascade's."""
    save_artifact(tmp_path / "r.safetensors", Card("linear", "1", "", MODELS), {"x": np.zeros(2)})
    with pytest.raises(ArtifactError, match="kind"):
        load_cascade(tmp_path / "r.safetensors")


def test_a_file_with_missing_arrays_is_refused(cascade: RoutedCascade, tmp_path: Path) -> None:
    """Arrays that don't cover all states are an error when the file is loaded."""
    from routers.artifact import load_artifact

    save_cascade(tmp_path / "c.safetensors", cascade, version="3")
    card, arrays = load_artifact(tmp_path / "c.safetensors")
    save_artifact(tmp_path / "d.safetensors", card, {**arrays, "rules": arrays["rules"][:, :-1]})
    with pytest.raises(ArtifactError, match="whole"):
        load_cascade(tmp_path / "d.safetensors")
