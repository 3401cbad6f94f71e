"""Bandits: exact probabilities, additive statistics, and less regret than a learner that doesn't read the query."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routers import prior
from routers.bandit import (
    BOLDNESS_OF_LEVEL,
    GREEDY,
    RULES,
    SQUARE_CB,
    THOMPSON,
    Bandit,
    _normal_cdf,
    drawn_spread,
    main_axes,
    thompson,
)
from routers.bandit_state import NOISE_COUNTS, BanditState, Shrinkage, _weighed, fitted, posterior
from routers.bench.bandit import Replay, compared, summary
from routers.plugin import PluginRouter
from routers.projection import Projection
from routers.select import Exploration, Forecast
from routers.types import Candidate, Knobs, Query
from tests.routers.worlds import LARGE, POOL, SMALL, world

DIMS = 4
PAIR = [SMALL, LARGE]


def bandit(rule: str = THOMPSON, seed: int = 0, **stated: object) -> Bandit:
    """A bandit whose base router knows only prices."""
    vectors = np.random.default_rng(seed).normal(size=(200, 8))
    projection = main_axes(Projection().fit(vectors), vectors, DIMS)
    return Bandit(PluginRouter("linear", "1", "v"), projection, rule=rule, **stated)  # type: ignore[arg-type]


def query(seed: int = 0) -> Query:
    return Query("q", np.random.default_rng(seed).normal(size=8).astype(np.float32), "v", input_tokens=100)


@pytest.mark.parametrize("rule", RULES)
def test_probabilities_sum_to_one_and_match_frequencies(rule: str) -> None:
    """Over evenly spread draws each model is chosen exactly as often as its probability states."""
    learner = bandit(rule)
    for i in range(40):
        learner.update(query(i), POOL, POOL[i % 3].model, float(i % 2))
    chances = learner.choose(query(99), POOL, Knobs(cost_weight=0.3), 0.0).probabilities
    assert sum(chances.values()) == pytest.approx(1.0)
    draws = [(i + 0.5) / 500 for i in range(500)]
    picks = [learner.choose(query(99), POOL, Knobs(cost_weight=0.3), draw) for draw in draws]
    for model, chance in chances.items():
        assert np.mean([pick.model == model for pick in picks]) == pytest.approx(chance, abs=0.006)
    assert all(pick.propensity == pytest.approx(chances[pick.model]) for pick in picks)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 0.5)), min_size=2, max_size=6))
def test_thompson_probabilities_are_those_of_simulated_draws(arms: list[tuple[float, float]]) -> None:
    """The computed probabilities agree with a simulation of the posterior draws."""
    mean, sd = np.array(arms).T
    chances = thompson(mean, sd)
    draws = np.random.default_rng(0).normal(mean, sd, size=(20_000, len(mean)))
    simulated = np.bincount(draws.argmax(1), minlength=len(mean)) / 20_000
    assert chances.sum() == pytest.approx(1.0) and np.abs(chances - simulated).max() < 0.05


@given(sd=st.floats(0.01, 0.5), level=st.floats(0.001, 0.6), boldness=st.floats(0, 1))
def test_boldness_scales_the_deviation_beyond_the_level(sd: float, level: float, boldness: float) -> None:
    """The uncertainty of a model's level counts fully; the rest is scaled by the boldness, and never negative."""
    none, (spread,), whole = (drawn_spread(np.array([sd]), np.array([level]), b) for b in (0.0, boldness, 1.0))
    assert none[0] == pytest.approx(BOLDNESS_OF_LEVEL * min(level, sd))
    assert none[0] - 1e-12 <= spread <= whole[0] + 1e-12 <= sd + 1e-9
    assert drawn_spread(np.array([sd]), np.zeros(1), boldness) == pytest.approx(boldness * sd)


def test_the_quick_normal_distribution_is_close() -> None:
    """Its error is below .0003, as its docstring states."""
    z = np.linspace(-6.0, 6.0, 2401)
    assert np.abs(_normal_cdf(z) - [NormalDist().cdf(one) for one in z.tolist()]).max() < 3e-4


def test_levels_are_uncertain_for_untried_models_only() -> None:
    """Where all queries lie far from the origin, a tried model's level is still settled by their number, and an untried
    one's is not.
    """
    rng = np.random.default_rng(0)
    state = BanditState.empty(("tried", "not"), 3)
    for _ in range(400):
        state.learn(np.append(rng.normal(5.0, 1.0, 3), 1.0), "tried", rng.normal(0.1, 0.4))
    found = fitted(state, Shrinkage())
    assert found.levels[0] < 0.05 < 0.15 < found.levels[1]


@given(seed=st.integers(0, 30), cut=st.integers(1, 29))
@settings(max_examples=20, deadline=None)
def test_replicas_add_up(seed: int, cut: int) -> None:
    """Two states that each saw a part, merged in either order, equal the state that saw all."""
    rng = np.random.default_rng(seed)
    rows = [(rng.normal(size=3), str(rng.choice(["a", "b", "c"])), rng.random(), rng.random()) for _ in range(30)]
    whole, left, right = BanditState.empty((), 2), BanditState.empty((), 2), BanditState.empty((), 2)
    for i, row in enumerate(rows):
        whole.learn(*row)
        (left if i < cut else right).learn(*row)
    for merged in (left.merged(right), right.merged(left)):
        order = [merged.models.index(model) for model in whole.models]
        assert np.allclose(merged.gram[order], whole.gram) and np.allclose(merged.quality[order], whole.quality)
        assert np.allclose(merged.cost[order], whole.cost) and merged.squares == pytest.approx(whole.squares)
    twice = whole.merged(whole)
    twice.fade(0.5)
    assert all(np.allclose(half, whole.arrays()[name]) for name, half in twice.arrays().items())


def test_the_origin_and_the_unit_of_the_axes_do_not_matter() -> None:
    """On shifted and scaled axes the same corrections are learned, because penalties apply to standardised axes."""
    rng, shift, scale = np.random.default_rng(5), np.array([5.0, -2.0, 0.0]), np.array([3.0, 0.2, 1.0])
    plain, moved = BanditState.empty(("a", "b"), 3), BanditState.empty(("a", "b"), 3)
    for i in range(3000):
        z, model = rng.normal(size=3), "ab"[i % 2]
        score = 0.2 * z[0] * (1 if i % 2 else -1) + 0.1 * z[1] + rng.normal(0.05, 0.4)
        plain.learn(np.append(z, 1.0), model, score)
        moved.learn(np.append(shift + scale * z, 1.0), model, score)
    one, other = fitted(plain, Shrinkage()), fitted(moved, Shrinkage())
    for z in rng.normal(size=(5, 3)):
        mine, theirs = one.correction(np.append(z, 1.0)), other.correction(np.append(shift + scale * z, 1.0))
        assert np.allclose(mine[0], theirs[0], atol=0.01) and np.allclose(mine[1], theirs[1], rtol=0.05)


def test_a_state_survives_its_arrays() -> None:
    """A state restored from its arrays gives the same estimates."""
    state = BanditState.empty(("a", "b"), 2)
    state.learn(np.array([1.0, 2.0, 1.0]), "b", 0.3, 0.1)
    again = BanditState.restored(state.models, state.arrays())
    assert np.allclose(posterior(again, Shrinkage()).quality, posterior(state, Shrinkage()).quality)


def test_the_posterior_is_the_whole_ridge_regression() -> None:
    """Block elimination gives the result of one large system with shared and own coefficients."""
    rng, shrink = np.random.default_rng(0), Shrinkage(3.0, 7.0, 2.0)
    m, d, n = 3, 3, 60
    z, arm, y = np.c_[rng.normal(size=(n, d - 1)), np.ones(n)], rng.integers(0, m, n), rng.normal(size=n)
    state = BanditState.empty([str(j) for j in range(m)], d - 1)
    big = np.zeros((n, d * (m + 1)))
    for i in range(n):
        state.learn(z[i], str(arm[i]), y[i])
        big[i, :d], big[i, d * (arm[i] + 1) : d * (arm[i] + 2)] = z[i], z[i]
    penalty = np.r_[[shrink.shared] * (d - 1), 1.0, np.tile(np.r_[[shrink.own] * (d - 1), shrink.level], m)]
    theta = np.linalg.solve(big.T @ big + np.diag(penalty), big.T @ y)
    expected = theta[:d] + theta[d:].reshape(m, d)
    assert np.allclose(posterior(state, shrink).quality, expected)


@pytest.mark.parametrize("differ", [0.0, 0.5])
def test_the_evidence_is_the_marginal_likelihood(differ: float) -> None:
    """The log ratio of the evidence of two penalties is that of the answers' joint density, computed directly: normal
    with mean zero, and with an inverse-gamma prior on the noise.
    """
    rng, m, d, n = np.random.default_rng(3), 3, 4, 80
    z, arm = np.c_[rng.normal(size=(n, d - 1)), np.ones(n)], rng.integers(0, m, n)
    y = 0.4 * rng.normal(size=n) + 0.5 + differ * z[:, 0] * (arm - 1)
    state = BanditState.empty([str(j) for j in range(m)], d - 1)
    for i in range(n):
        state.learn(z[i], str(arm[i]), y[i])

    def exact(shrink: Shrinkage) -> float:
        slopes, same = z[:, :-1] @ z[:, :-1].T, arm[:, None] == arm
        joint = np.eye(n) + slopes / shrink.shared + 1.0 + same * (slopes / shrink.own + 1.0 / shrink.level)
        scale = (y @ np.linalg.solve(joint, y) + NOISE_COUNTS * shrink.noise) / (n + NOISE_COUNTS)
        return -0.5 * float(np.linalg.slogdet(joint)[1]) - 0.5 * (n + NOISE_COUNTS) * float(np.log(scale))

    tight, loose = Shrinkage(), Shrinkage(own=10.0)
    told = _weighed(state, posterior(state, loose), loose)[0] - _weighed(state, posterior(state, tight), tight)[0]
    assert told == pytest.approx(exact(loose) - exact(tight)) and (told > 0.0) == (differ > 0.0)


def test_without_answers_it_estimates_as_its_base() -> None:
    """A bandit that has seen no answer has the estimates of its base router."""
    learner = bandit(GREEDY)
    assert np.allclose(learner.forecast(query(), POOL).quality, prior.expected(POOL))


def test_it_learns_which_model_suits_which_query() -> None:
    """If the cheap model is right on one half of the queries only, both halves are told apart."""
    learner = bandit(GREEDY, shrink=Shrinkage(own=5.0, level=0.1))
    for i in range(600):
        asked = query(i)
        easy = learner.axes(asked.vector)[0] > 0
        learner.update(asked, PAIR, "small", 1.0 if easy else 0.0)
        learner.update(asked, PAIR, "large", 0.5)
    right = 0
    for i in range(1000, 1100):
        asked = query(i)
        expected = "small" if learner.axes(asked.vector)[0] > 0 else "large"
        right += learner.choose(asked, PAIR, Knobs(cost_weight=0.0), 0.5).model == expected
    assert right >= 80


def test_a_half_life_follows_a_change() -> None:
    """When a model turns bad, a learner with a half-life stops choosing it; one without still does."""
    preferred = {}
    for half_life in (0.0, 40.0):
        learner = bandit(GREEDY, half_life=half_life, shrink=Shrinkage(own=1e6))
        for i in range(400):
            learner.update(query(i), PAIR, "small", 1.0 if i < 340 else 0.0)
            learner.update(query(i), PAIR, "large", 0.7)
        preferred[half_life] = learner.choose(query(7), PAIR, Knobs(cost_weight=0.0), 0.5).model
    assert preferred == {0.0: "small", 40.0: "large"}


def test_queries_that_opted_out_are_not_explored() -> None:
    """Without exploration the best model has probability 1, under every rule."""
    for rule in (THOMPSON, SQUARE_CB):
        choice = bandit(rule).choose(query(), POOL, Knobs(explore=False), 0.99)
        assert choice.propensity == 1.0 and choice.reason == "best estimate"


def test_every_model_keeps_the_floor() -> None:
    """However sure the learner is, each eligible model keeps the exploration floor."""
    for rule in (THOMPSON, SQUARE_CB):
        learner = bandit(rule, exploration=Exploration(floor=0.06))
        for i in range(300):
            learner.update(query(i), POOL, "large", 1.0)
            learner.update(query(i), POOL, "small", 0.0)
        chances = learner.choose(query(1), POOL, Knobs(cost_weight=0.0), 0.0).probabilities
        assert min(chances.values()) >= 0.06 / 3 - 1e-9


def test_a_new_model_joins() -> None:
    """A candidate that the state has never seen is estimated by its price, with the prior's deviation."""
    learner = bandit()
    learner.update(query(), [SMALL], "small", 1.0)
    fresh = Candidate("fresh", 1.0, 4.0)
    forecast = learner.forecast(query(), [SMALL, fresh])
    assert forecast.quality_sd[1] > forecast.quality_sd[0]
    learner.update(query(), [SMALL, fresh], "fresh", 1.0)
    assert "fresh" in learner.state.models


def test_exploration_shrinks_with_the_square_root_of_the_answers() -> None:
    """SquareCB's gamma is the stated sharpness after 1,000 answers, and is not zero before the first."""
    learner = bandit(SQUARE_CB, exploration=Exploration(floor=0.001, sharpness=1000.0))
    for seen, gamma in ((1000, 1000.0), (250, 500.0), (0, 1000.0 * 0.001**0.5)):
        learner.seen = seen
        assert learner.chances([0.9, 0.8], np.zeros(2), True) == pytest.approx([1 - (p := 1 / (2 + 0.1 * gamma)), p])
    assert bandit(GREEDY).chances([0.8, 0.9], np.ones(2), True) == [0.0, 1.0]


def test_a_model_without_answers_is_not_corrected() -> None:
    """Its standard deviation is the prior one, of its own mean and of its own slopes on the query's axes."""
    learner, asked = bandit(), query(4)
    learner.update(asked, POOL, SMALL.model, 1.0, 0.3)
    z, shrink = learner.axes(asked.vector), Shrinkage()
    quality, sd, cost = learner.correction(asked.vector, (SMALL.model, "unheard"))
    assert quality[0] > 0.0 == quality[1] and cost[0] > 0.0 == cost[1]
    prior_variance = learner.posterior.noise * (1 / shrink.level + z[:-1] @ z[:-1] / shrink.own)
    assert sd[1] == pytest.approx(prior_variance**0.5) and sd[0] < sd[1]
    assert learner.spread(Forecast(["unheard"], [0.5], [sd[1]], [0.0], [0.0], [0.0])) == pytest.approx(
        drawn_spread(np.array([sd[1]]), np.array([(learner.posterior.noise / shrink.level) ** 0.5]), learner.boldness)
    )


def test_an_answer_counts_half_after_the_half_life() -> None:
    """And every answer changes the next forecast."""
    learner, asked = bandit(half_life=10.0), query(4)
    before = learner.forecast(asked, POOL).quality
    for _ in range(11):
        learner.update(asked, POOL, SMALL.model, 0.0)
    assert learner.forecast(asked, POOL).quality[0] < before[0] and learner.seen == 11
    assert learner.state.counts[0] == pytest.approx(sum(0.5 ** (age / 10) for age in range(11)))


def test_an_unknown_rule_is_refused() -> None:
    """Only rules whose probabilities can be computed are accepted."""
    with pytest.raises(ValueError, match="softmax"):
        bandit("softmax")


def test_regret_is_below_a_learner_that_does_not_read_the_query() -> None:
    """Replayed online where the best model depends on the query, Thompson sampling beats epsilon-greedy."""
    data, truth = world(1500, d=6, seed=3)
    z = np.c_[data.x[:, :DIMS], np.ones(len(truth))]
    cost = np.tile([0.0001, 0.0005, 0.003], (len(truth), 1))
    rows = Replay(data.scores, cost, z, np.zeros_like(cost), np.zeros_like(cost))
    for weight in (0.0, 20.0):
        found = summary(compared(rows, weight, range(3)))
        assert found[THOMPSON]["regret"] < found["epsilon_greedy"]["regret"]


def state_after(rng: np.random.Generator, rounds: int, differ: float) -> BanditState:
    """Answers of two models whose quality depends on the query, or doesn't."""
    state = BanditState.empty((), DIMS)
    for i in range(rounds):
        z = np.append(rng.normal(size=DIMS), 1.0)
        chance = 0.5 + (0.4 if i % 2 else -0.4) * differ * np.sign(z[0])
        state.learn(z, "ab"[i % 2], float(rng.random() < chance) - 0.5)
    return state


def test_the_penalty_on_own_slopes_is_learned() -> None:
    """The evidence lowers it where models differ by query, and keeps it where they don't."""
    rng, stated = np.random.default_rng(1), Shrinkage()
    for differ in (0.0, 1.0):
        state = state_after(rng, 200, differ)
        held = np.abs(posterior(state, stated).quality[:, 0]).max()
        free = np.abs(fitted(state, stated).quality[:, 0]).max()
        assert (free > 1.5 * held) == (differ > 0)


def test_the_noise_is_learned() -> None:
    """If answers are predicted well, the bandit's deviations are smaller."""
    rng = np.random.default_rng(2)
    loud, quiet = state_after(rng, 400, 0.0), BanditState.empty((), DIMS)
    for _ in range(400):
        quiet.learn(np.append(rng.normal(size=DIMS), 1.0), "a", 0.1)
    assert fitted(quiet, Shrinkage()).noise < 0.1 < fitted(loud, Shrinkage()).noise


@given(st.binary(max_size=60))
def test_malformed_statistics_are_refused(data: bytes) -> None:
    """Bytes of another kind or shape never become a state."""
    with pytest.raises(ValueError):
        BanditState.from_bytes(data, 3)
    with pytest.raises(ValueError, match="axes"):
        BanditState.from_bytes(BanditState.empty(("a",), 2).to_bytes(), 3)
