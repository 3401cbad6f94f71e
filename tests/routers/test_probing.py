from __future__ import annotations

import numpy as np
import pytest

from routers.bench.probing import BUDGETS, RULES, compared, factorised, named
from routers.probing import FIRST, Leaderboard, _contested, leaderboard, next_batch


def table(n: int = 800, models: int = 12, seed: int = 0) -> np.ndarray:
    """Scores of models with means from .3 to .7; queries differ in difficulty."""
    rng = np.random.default_rng(seed)
    chance = np.clip(np.linspace(0.3, 0.7, models) + 0.25 * rng.normal(size=(n, 1)), 0, 1)
    return (rng.random((n, models)) < chance).astype(float)


def found_best(truth: np.ndarray, share: float, seed: int = 0) -> tuple[int, float]:
    """Runs the purchase of outcomes on a complete table; returns the model found best and the share of cells bought."""
    order = np.random.default_rng(seed).permutation(len(truth))
    scores = np.full(truth.shape, np.nan)
    while np.isfinite(scores).mean() < share:
        model, rows = next_batch(scores, order)
        if not len(rows):
            break
        scores[rows, model] = truth[rows, model]
        if np.isfinite(scores).sum(0).min() >= FIRST and leaderboard(scores).settled:
            break
    return leaderboard(scores).leader, float(np.isfinite(scores).mean())


def test_the_best_model_is_found_with_few_outcomes() -> None:
    """With 15 % of the cells it finds the best of twelve models, or one within two points of it."""
    misses = 0
    for seed in range(4):
        truth = table(seed=seed)
        best, spent = found_best(truth, 0.15, seed)
        assert spent <= 0.17
        misses += truth.mean(0).max() - truth.mean(0)[best] > 0.02
    assert misses == 0


def test_every_model_is_asked_first() -> None:
    """No model is dropped before it was asked."""
    truth, order = table(200, 3), np.arange(200)
    scores = np.full(truth.shape, np.nan)
    for _ in range(3):
        model, rows = next_batch(scores, order)
        scores[rows, model] = truth[rows, model]
    assert np.isfinite(scores).sum(0).tolist() == [FIRST] * 3


def test_means_are_adjusted_for_easy_queries() -> None:
    """A model that was asked only easy queries isn't preferred for that."""
    ease = np.repeat([0.0, 1.0], 200)
    truth = np.column_stack([*[ease] * 8, np.clip(ease - 0.2, 0, 1)])
    scores = truth.copy()
    scores[:200, 8] = np.nan
    now = leaderboard(scores)
    assert now.mean[8] < now.mean[0]
    assert scores[200:, 8].mean() > scores[:, 0].mean()


def test_a_clear_winner_ends_the_search() -> None:
    """It costs only a small part of the budget."""
    rng = np.random.default_rng(0)
    truth = (rng.random((2_000, 5)) < np.array([0.2, 0.2, 0.2, 0.2, 0.9])).astype(float)
    best, spent = found_best(truth, 0.5)
    assert best == 4
    assert spent < 0.1


def test_a_rival_with_few_answers_is_asked_before_the_leader() -> None:
    """The rival with the highest upper bound is asked next, even if the leader's own bound is lower."""
    order, scores = np.arange(400), np.full((400, 3), np.nan)
    scores[:300, 0] = np.arange(300) % 10 < 6
    scores[:FIRST, 1] = np.arange(FIRST) % 10 < 5
    scores[:FIRST, 2] = np.arange(FIRST) % 10 < 1
    now = leaderboard(scores)
    assert now.leader == 0
    assert next_batch(scores, order)[0] == 1


def test_an_error_is_that_of_the_mean() -> None:
    """Models that differ by a constant have a residual variance of .25 / n, the prior's. Models that never agree have
    that of a fair coin on top. A model that was not asked has an infinite error and is never the leader.
    """
    alike = leaderboard(np.tile([0.5, 0.75], (100, 1)))
    assert alike.mean == pytest.approx([0.5, 0.75]) and alike.error == pytest.approx(0.5 / 100)
    turns = np.tile([[1.0, 0.0], [0.0, 1.0]], (50, 1))
    assert leaderboard(turns).error == pytest.approx(np.sqrt((0.25 + 0.25 / 100) / 100))
    unasked = leaderboard(np.column_stack([turns, np.full(100, np.nan)]))
    assert unasked.error[2] == np.inf and unasked.leader != 2


@pytest.mark.parametrize(("errors", "settled"), [([0.05, 0.04, 0.0], True), ([0.05, 0.06, 0.0], False)])
def test_it_is_settled_when_the_bounds_are_apart(errors: list[float], settled: bool) -> None:
    """The leader's mean less two errors must be above every other mean plus two errors."""
    assert Leaderboard(np.array([0.8, 0.6, 0.2]), np.array(errors)).settled == settled


@pytest.mark.parametrize(
    ("asked", "next_model"),
    [([50, 50, 30], 2), ([30, 50, 30], 0), ([99, 50, 99], 1), ([99, 99, 99], 0), ([50, 99, 60], 0), ([99, 50, 30], 2)],
)
def test_the_leader_or_the_rival_with_the_highest_bound_is_asked(asked: list[int], next_model: int) -> None:
    """It is whichever was asked less; a model that was asked all 99 queries is passed over."""
    now = Leaderboard(np.array([0.8, 0.6, 0.5]), np.array([0.01, 0.01, 0.2]))
    assert _contested(now, np.array(asked), 99) == next_model


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_finds_a_clear_winner_within_its_budget(rule: str) -> None:
    """One model is far above the others, and the budget is 15 % of the cells."""
    rng = np.random.default_rng(0)
    truth = (rng.random((300, 6)) < np.array([0.2, 0.3, 0.3, 0.2, 0.3, 0.9])).astype(float)
    assert named(truth, RULES[rule](np.random.default_rng(1)), BUDGETS)[-1] == 5


def test_a_factorisation_predicts_a_table_of_rank_one() -> None:
    """It is given a third of the cells, and errs by a few hundredths."""
    rng = np.random.default_rng(2)
    truth = rng.uniform(0.3, 1.0, (120, 1)) * rng.uniform(0.3, 1.0, (1, 8))
    known = np.where(rng.random(truth.shape) < 0.35, truth, np.nan)
    assert np.abs(factorised(known, rng).mean(0) - truth).mean() < 0.05


def test_the_comparison_has_every_rule_with_its_interval() -> None:
    """It has every budget, and when our own rule was sure."""
    report = compared(table(200, 5), 100, 2)
    assert set(report["rules"]) == set(RULES)
    for row in report["rules"].values():
        assert all(one["found"]["low"] < one["found"]["high"] for one in row.values())
    assert 0 < report["sure"]["share"]["value"] <= 1
