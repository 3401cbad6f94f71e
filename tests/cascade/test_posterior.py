"""The posterior cascade: its states, heads and values, and the strategy that uses them."""

from __future__ import annotations

from dataclasses import replace
from itertools import repeat
from math import nan
from typing import cast

import numpy as np
import pytest
from msgspec import structs

from cascade.climb import climb
from cascade.evaluate import plans
from cascade.logistic import logistic
from cascade.posterior import Prices, Scene, Space, after, shown
from cascade.posterior_fit import Board, _end, best_quality, cheapest_matching, solve, with_forecasts
from cascade.replay import LoggedModels, replay_all, replayed
from cascade.routing import CascadeRouting, routed_plan
from cascade.rows import TrainingSettings
from cascade.train import Trained, train, walked
from cascade.types import Evidence, Limits, Outcome, PlanError
from routers.types import Estimate
from tests.cascade.worlds import MODELS, WORST, logged, part


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train(part(seed=1), TrainingSettings(estimate_folds=2, folds=2, depth=2))


def test_states_are_ordered_by_their_number_of_answers() -> None:
    """There is a state for each subset of the pool up to the maximum depth, once per way of reading evidence."""
    space = Space(MODELS, (0, 1), 2, (False, True))
    states = space.states()
    assert len(states) == 1 + 2 * 2 + 4 and states[0] == ()
    assert [len(s) for s in states] == sorted(len(s) for s in states)
    assert all(after(s, a) in states for s in states for a in space.actions(s))


def test_logistic_finds_known_weights() -> None:
    """Newton's method recovers the weights that generated the labels."""
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(4000), rng.normal(size=(4000, 2))])
    truth = np.array([0.5, 1.5, -1.0])
    y = (rng.random(4000) < 1 / (1 + np.exp(-x @ truth))).astype(float)
    assert np.allclose(logistic(x, y, 1e-3), truth, atol=0.15)


def test_logistic_survives_separable_and_constant_labels() -> None:
    """Constant or perfectly separable labels give finite weights."""
    x = np.column_stack([np.ones(50), np.linspace(-1, 1, 50)])
    assert np.isfinite(logistic(x, np.ones(50), 1.0)).all()
    assert np.isfinite(logistic(x, (x[:, 1] > 0).astype(float), 1.0)).all()


def test_agreement_raises_the_chance(trained: Trained) -> None:
    """Two models that agree are more likely right than the same two that disagree."""
    state = ((0, True), (1, True))
    scene = Scene(np.zeros((1, 3)), shown(np.full((1, 3), 0.8)), np.ones((1, 3, 3)))
    apart = replace(scene, agreement=np.eye(3)[None])
    assert trained.posterior.chances(state, scene)[0, 0] > trained.posterior.chances(state, apart)[0, 0] + 0.2


def test_the_best_quality_within_a_budget_is_chosen() -> None:
    """It is the peak of the curve if affordable, else the best below the limit, else the cheapest."""
    points = np.column_stack([[4.0, 4.0, 3.0, 3.0, 2.0, 2.0], [0.9, 0.9, 0.9, 0.8, 0.7, 0.6]])
    assert best_quality(points) in (0, 1) and best_quality(points, 3.0) == 3 and best_quality(points, 0.1) == 5


def test_a_higher_rate_spends_less(trained: Trained) -> None:
    """The cost falls along the exchange rates from quality only to cost only."""
    points = np.array([w.means() for w in walked(trained.posterior, trained.rules, part(seed=2))])
    assert points[0, 0] > 3 * points[-1, 0]
    assert points[0, 1] > points[-1, 1]


def test_it_beats_the_best_single_model_at_lower_cost(trained: Trained) -> None:
    """On fresh rows the curve reaches the large model's quality at well under its cost."""
    rows = part(600, seed=3)
    points = np.array([w.means() for w in walked(trained.posterior, trained.rules, rows)])
    large = rows.scores[:, 2].mean(), rows.paid.answer[:, 2].mean()
    good = points[points[:, 1] >= large[0]]
    assert len(good) and good[:, 0].min() < 0.6 * large[1]


@pytest.mark.parametrize("check_usd", [0.0, 2e-5])
def test_the_climb_and_the_sweep_agree(check_usd: float) -> None:
    """Running the served generator row by row gives the costs and scores of the vectorised sweep."""
    fitted = train(part(200, seed=4, check_usd=check_usd), TrainingSettings(estimate_folds=2, folds=2, depth=2))
    rows = part(80, seed=5, check_usd=check_usd)
    for rule in fitted.rules[::6]:
        swept = walked(fitted.posterior, [rule], rows)[0]
        climbed = replay_all(plans(fitted, rule, rows), rows.logged)
        assert climbed.cost_usd == pytest.approx(swept.cost_usd.mean())
        assert climbed.score == pytest.approx(swept.score.mean())
        assert climbed.calls == pytest.approx(swept.calls.mean())
        assert climbed.latency_s == pytest.approx(swept.latency_s.mean())


def estimates(**quality: float) -> list[Estimate]:
    return [Estimate(m, quality.get(m, 0.7), 0.1, c) for m, c in zip(MODELS, (1e-5, 5e-5, 3e-4), strict=True)]


def test_a_failed_model_is_never_asked_again(trained: Trained) -> None:
    """A failed model is excluded whatever its value, and the others answer."""
    plan = routed_plan(trained.posterior, trained.rules[10], estimates(), WORST, retries=0)
    climbing, asked = climb(plan, repeat(0.5)), []
    rung = next(climbing)
    with pytest.raises(StopIteration) as stop:
        while True:
            asked.append(rung.model)
            rung = climbing.send(Outcome(rung.model, "server_error"))
    assert sorted(asked) == sorted(MODELS) and stop.value.value.reason == "failed"


@pytest.mark.parametrize(("refused", "kept"), [(True, 1), (False, 0)])
def test_a_rejected_answer_is_not_kept_while_another_is_possible(trained: Trained, refused: bool, kept: int) -> None:
    """A refusal has a chance of zero, however sure it sounds and however good its model is."""
    known = estimates(small=0.95, middle=0.3)
    strategy = routed_plan(trained.posterior, trained.rules[20], known, WORST).strategy
    assert strategy is not None
    sure = Outcome("small", evidence=Evidence(-0.001, -0.001, refused=refused, text="B"))
    unsure = Outcome("middle", evidence=Evidence(-2.0, -2.0, text="A"))
    assert strategy.best([sure, unsure]) == kept


def test_missing_evidence_changes_no_chance(trained: Trained) -> None:
    """An answer without log-probabilities leaves the state unchanged, and is kept only if no other is possible."""
    plan = routed_plan(trained.posterior, trained.rules[20], estimates(), WORST, limits=Limits(max_attempts=2))
    climbing = climb(plan, repeat(0.5))
    first = next(climbing)
    second = climbing.send(Outcome(first.model, evidence=Evidence(text="A")))
    assert second.model != first.model and second.final


def test_abstention_is_reported() -> None:
    """Below the stated chance no answer is kept."""
    fitted = train(part(200, seed=6), TrainingSettings(estimate_folds=2, folds=2, depth=2, pool=3))
    plan = routed_plan(fitted.posterior, fitted.rules[-1], estimates(), WORST, abstain_below=1.01)
    verdict = replayed(plan, LoggedModels(logged(5), 0))
    assert verdict.reason == "abstained" and verdict.kept is None


def test_the_climb_abstains_as_the_sweep_did() -> None:
    """The share that is answered, and its error rate, are those that the threshold was certified on."""
    fitted = train(part(200, seed=4), TrainingSettings(estimate_folds=2, folds=2, depth=2))
    rows, rule = part(80, seed=5), fitted.rules[4]
    swept = walked(fitted.posterior, [rule], rows)[0]
    assert (rows.scores[np.arange(80), swept.model] == swept.score).all() and len(set(swept.model.tolist())) > 1
    least = float(np.median(swept.chance))
    cautious = [
        structs.replace(plan, strategy=replace(cast(CascadeRouting, plan.strategy), abstain_below=least))
        for plan in plans(fitted, rule, rows)
    ]
    climbed, given = replay_all(cautious, rows.logged), swept.chance >= least
    assert climbed.answered == pytest.approx(given.mean()) and 0.4 < given.mean() < 0.6
    assert climbed.score == pytest.approx(swept.score[given].sum() / len(given))


@pytest.mark.parametrize("fault", [estimates(small=nan), estimates()[:2]])
def test_a_model_without_an_estimate_is_refused(trained: Trained, fault: list[Estimate]) -> None:
    """Without an estimate there is no prior to start from."""
    with pytest.raises(PlanError, match="estimate"):
        routed_plan(trained.posterior, trained.rules[0], fault, WORST)


def test_an_unpriced_model_is_refused(trained: Trained) -> None:
    """The cost of its climb could not be bounded."""
    with pytest.raises(PlanError, match="price"):
        routed_plan(trained.posterior, trained.rules[0], estimates(), {"small": 1.0, "large": 1.0})


def test_the_cheapest_matching_point_is_smoothed() -> None:
    """A single good point between two poor ones isn't chosen."""
    points = np.array([[9, 0.9], [8, 0.9], [7, 0.9], [6, 0.8], [5, 0.9], [4, 0.7], [3, 0.6]], float)
    assert cheapest_matching(points, 0.86) == 2
    assert cheapest_matching(points, 2.0) in (0, 1, 2)


def test_free_models_are_predicted_to_cost_nothing() -> None:
    """If all prices are zero, the predicted cost is zero, and nothing is divided by it."""
    told = part()
    board = Board.of(train(part(seed=1), TrainingSettings(estimate_folds=2, folds=2, depth=2)).posterior, told.scene)
    free = Prices(*(np.zeros_like(usd) for usd in (told.prices.answer, told.prices.read)))
    rule = with_forecasts(solve(board, free, 1.0), board, free)
    assert rule.gains is not None and rule.spends is not None
    assert np.isfinite(rule.gains).all() and np.isfinite(rule.spends).all()


def test_forecasts_agree_with_climbs_row_by_row(trained: Trained) -> None:
    """A climb of each row alone ends with the same chance and the same cost after its first answer, and the forecasts
    have the means of both.
    """
    rows = part(200, seed=7, check_usd=1e-5)
    prices = Prices(rows.logged.data.cost_usd, rows.logged.data.checked_cost_usd)
    board = Board.of(trained.posterior, rows.scene)
    space, m = board.space, len(MODELS)
    rule = solve(board, prices, 300.0)
    told = with_forecasts(rule, board, prices)
    chance, usd = told.opened(space, board.chances[()], prices)
    most = prices.answer.max(1) * space.depth
    onward = 0
    for place, action in enumerate(space.actions(())):
        found, spent = _end(rule, board, prices, after((), action), np.arange(200))
        for row in range(200):
            state, paid = after((), action), 0.0
            while True:
                chances, own = board.chances[state][[row]], prices.rows(np.array([row]))
                pick = int(rule.options(space, state, chances, own).argmax())
                if pick == 0:
                    end = max(chances[0, j] for j, _ in state)
                    break
                if pick <= m:
                    end, paid = chances[0, pick - 1], paid + own.answer[0, pick - 1]
                    break
                further = space.actions(state)[pick - 1 - m]
                state, paid, onward = after(state, further), paid + own.of([further])[0, 0], onward + 1
            assert (found[row], spent[row]) == pytest.approx((end, paid))
        assert chance[:, place].mean() == pytest.approx(found.mean(), abs=1e-3)
        share = (usd[:, place] - prices.of([action])[:, 0]) / most
        assert share.mean() == pytest.approx((spent / most).clip(max=1.0).mean(), abs=1e-3)
    assert onward > 20


def test_values_look_ahead() -> None:
    """If answers are free, asking another model is never worth less than stopping."""
    rows = part(300, seed=7)
    fitted = train(rows, TrainingSettings(estimate_folds=2, folds=2, depth=2))
    board = Board.of(fitted.posterior, rows.scene)
    rule = solve(board, rows.prices, 0.0)
    options = rule.options(board.space, (), board.chances[()], rows.prices)
    assert options[:, 4:].max(1).mean() > options[:, 1:4].max(1).mean()
