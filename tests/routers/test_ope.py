"""Off-policy estimators against identities and known true values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers import ope
from routers.bench.ope import MODELS, checked, logging_policy, one_log, world
from routers.intervals import mean_interval, percentile_interval
from routers.ope import LogError, Refusal, Requirements, Rounds


def logged(seed: int = 0, n: int = 400, m: int = 3) -> tuple[Rounds, np.ndarray, np.ndarray]:
    """A random log, target policy and reward model."""
    rng = np.random.default_rng(seed)
    mu = rng.dirichlet(np.ones(m) * 3, n) * 0.9 + 0.1 / m
    action = np.array([rng.choice(m, p=p) for p in mu])
    target = rng.dirichlet(np.ones(m), n)
    return Rounds(action, rng.random(n), mu), target, rng.random((n, m))


@given(seed=st.integers(0, 50))
def test_dr_without_a_model_is_ips(seed: int) -> None:
    """With a reward model of zero the doubly robust estimate is plain inverse propensity weighting, round by round."""
    rounds, target, model = logged(seed, n=50)
    assert np.allclose(ope.doubly_robust(rounds, target, 0 * model), ope.ips(rounds, target, model))


@given(seed=st.integers(0, 50))
def test_dr_without_overlap_is_dm(seed: int) -> None:
    """Where the target never makes a logged decision, the doubly robust estimate is the reward model's alone."""
    rounds, target, model = logged(seed, n=50)
    target[np.arange(50), rounds.action] = 0.0
    target /= target.sum(1, keepdims=True)
    assert np.allclose(ope.doubly_robust(rounds, target, model), ope.direct(rounds, target, model))


@given(seed=st.integers(0, 50), shift=st.floats(-5, 5))
def test_snips_is_equivariant_to_a_shift_of_rewards(seed: int, shift: float) -> None:
    """SNIPS of shifted rewards is SNIPS shifted; plain IPS doesn't have this property."""
    rounds, target, model = logged(seed, n=50)
    moved = replace(rounds, reward=rounds.reward + shift)
    assert np.isclose(ope.snips(moved, target, model).mean(), ope.snips(rounds, target, model).mean() + shift)


def test_snips_is_the_ratio_of_means() -> None:
    """The mean of the linearised values is the textbook estimate."""
    rounds, target, model = logged(3)
    weights = ope.importance(rounds, target)
    expected = (weights * rounds.reward).sum() / weights.sum()
    assert np.isclose(ope.snips(rounds, target, model).mean(), expected)


def test_the_value_of_the_logging_policy_is_the_mean_reward() -> None:
    """All weights are 1, so every weighting estimator returns the mean, and all rounds are effective."""
    rounds, _, model = logged(4)
    for name in ("ips", "snips", "clipped_ips"):
        assert np.isclose(ope.ESTIMATORS[name](rounds, rounds.logged, model).mean(), rounds.reward.mean())
    assert np.isclose(ope.overlap(rounds, rounds.logged).effective, len(rounds.reward))


def test_switch_at_no_limit_is_dr_and_at_zero_is_dm() -> None:
    """With its threshold in between, SWITCH mixes the reward model and the doubly robust estimate."""
    rounds, target, model = logged(5)
    assert np.allclose(ope.switch_dr(rounds, target, model, np.inf), ope.doubly_robust(rounds, target, model))
    assert np.allclose(ope.switch_dr(rounds, target, model, 0.0), ope.direct(rounds, target, model))


@pytest.mark.parametrize("kind", ["uniform", "skewed"])
def test_intervals_cover_the_true_value(kind: str) -> None:
    """Over 150 seeded logs the 95 % intervals of SNIPS and DR contain it about that often, and DR is no worse than
    SNIPS or IPS on a uniform log.
    """
    found = checked(kind, logs=150, rounds=600, seed=1)
    for name in ("snips", "dr"):
        assert 0.90 <= found[name]["coverage"] <= 0.99, found[name]
    if kind == "uniform":
        assert found["dr"]["rmse"] <= min(found["snips"]["rmse"], found["ips"]["rmse"])


def test_the_logs_mean_is_not_the_targets_value() -> None:
    """The estimators correct for the logging policy: the log's mean is far from the target's value, DR is near."""
    made = world(2)
    x, log, target = one_log(made, "skewed", 4000, np.random.default_rng(0))
    found = ope.valued(log, target, ope.cross_fitted(x, log))
    assert abs(log.reward.mean() - made.truth) > 0.05
    assert found.best.low <= made.truth <= found.best.high


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    """Both widths differ by less than a fifth."""
    rounds, target, model = logged(6, n=800)
    normal = mean_interval(ope.snips(rounds, target, model))
    resamples = np.random.default_rng(0).integers(0, 800, (400, 800))
    means = [ope.snips(rounds.take(rows), target[rows], model[rows]).mean() for rows in resamples]
    assert abs(percentile_interval(0.0, means).half_width / normal.half_width - 1) < 0.2


def test_cross_fitting_predicts_no_round_from_itself() -> None:
    """Changing a round's reward doesn't change its own prediction."""
    made = world(0, 500)
    x, log, _ = one_log(made, "uniform", 200, np.random.default_rng(1))
    before = ope.cross_fitted(x, log)
    changed = log.reward.copy()
    changed[7] += 100.0
    after = ope.cross_fitted(x, replace(log, reward=changed))
    assert np.allclose(before[7], after[7]) and not np.allclose(before, after)


def test_a_policy_outside_the_log_is_refused_with_its_price() -> None:
    """The refusal says how many explored calls would be needed and what they cost."""
    n = 500
    mu = np.tile([1.0, 0.0, 0.0], (n, 1))
    rounds = Rounds(np.zeros(n, np.intp), np.ones(n), mu)
    target = np.tile([0.0, 1.0, 0.0], (n, 1))
    found = ope.judged(rounds, target, np.array([0.01, 0.02, 0.03]), Requirements(exploration=0.2))
    assert isinstance(found, Refusal)
    assert found.overlap.unsupported == 1.0
    # every third explored call is useful
    assert found.explored_calls == 150 and found.cost_usd == pytest.approx(3.0)
    assert str(found).endswith("about 150 more explored calls needed, about $3 (at explore = 0.2 about 750 requests)")


def test_the_calls_that_a_refusal_asks_for_are_enough() -> None:
    """With that many more calls the same question is answered."""
    rng = np.random.default_rng(0)
    mu = logging_policy("skewed", np.zeros((20_000, MODELS)))
    target = np.eye(MODELS)[rng.integers(0, MODELS, 20_000)]
    action = np.array([rng.choice(MODELS, p=p) for p in mu])
    rounds = Rounds(action, np.ones(20_000), mu)
    few = np.arange(100)
    refused = ope.judged(rounds.take(few), target[few])
    assert isinstance(refused, Refusal)
    enough = np.arange(100 + round(1.1 * refused.calls))
    assert not isinstance(ope.judged(rounds.take(enough), target[enough]), Refusal)


@pytest.mark.parametrize(
    ("action", "reward", "logged", "named"),
    [
        ([0, 1], [0.5, np.nan], [[0.5, 0.5], [0.5, 0.5]], "round 1: reward"),
        ([0, 1], [0.5, 1.0], [[0.5, 0.5], [1.0, 0.0]], "round 1: propensity"),
        ([0, 1], [0.5, 1.0], [[1.5, 0.5], [0.5, 0.5]], "round 0: propensity"),
        ([0, 5], [0.5, 1.0], [[0.5, 0.5], [0.5, 0.5]], "round 1: action"),
    ],
)
def test_bad_rounds_are_named(action: list[int], reward: list[float], logged: list[list[float]], named: str) -> None:
    """A log that can't be evaluated is refused with the round and the field."""
    with pytest.raises(LogError, match=named):
        Rounds(np.array(action), np.array(reward), np.array(logged))


def test_differences_are_paired() -> None:
    """The difference of two policies that agree on most rounds is far more certain than either value."""
    rounds, target, model = logged(8, n=600)
    other = target.copy()
    other[:6] = target[:6, ::-1]
    found = ope.difference(rounds, target, other, model)
    assert found.half_width < 0.3 * ope.valued(rounds, target, model).best.half_width


def test_effective_rounds_are_expected_and_not_observed() -> None:
    """A log in which a policy's rare choices happen not to occur has as many as one in which they do."""
    logged = np.tile([0.98, 0.02], (400, 1))
    target = np.tile([0.5, 0.5], (400, 1))
    lucky, unlucky = np.zeros(400, np.intp), (np.arange(400) < 8).astype(np.intp)
    found = [ope.overlap(Rounds(action, np.ones(400), logged), target).effective for action in (lucky, unlucky)]
    assert found[0] == found[1] == pytest.approx(400 / (0.25 / 0.98 + 0.25 / 0.02))


def test_effective_rounds_are_kishs() -> None:
    """Equal weights count fully, one heavy weight counts little more than itself, and no weight counts nothing."""
    found = [ope.effective_rounds(np.array(weights)) for weights in ([2.0, 2.0, 0.0], [8.0, 1.0, 1.0], [0.0, 0.0])]
    assert found == pytest.approx([2.0, 100 / 66, 0.0])


def test_ten_right_answers_are_no_certainty() -> None:
    """If ten answers of a model were all right, the interval of its value still contains .8."""
    rng = np.random.default_rng(0)
    logged = np.tile([0.98, 0.02], (500, 1))
    action = (np.arange(500) % 50 == 0).astype(np.intp)
    reward = np.where(action == 1, 1.0, (rng.random(500) < 0.5).astype(float))
    rounds, target = Rounds(action, reward, logged), np.tile([0.0, 1.0], (500, 1))
    found = ope.valued(rounds, target, ope.cross_fitted(rng.normal(size=(500, 2)), rounds))
    assert found.best.low < 0.8 and found.snips.low < 0.8


def test_unknown_rewards_are_estimated_by_model() -> None:
    """Where every second or fourth reward is known, unknown ones count as the known ones of the same model do."""
    rng = np.random.default_rng(1)
    action = np.repeat([0, 1], [20, 40])
    reward = np.concatenate([np.repeat(rng.random(10), 2), np.repeat(rng.random(10), 4)])
    known = np.concatenate([np.arange(20) % 2 == 0, np.arange(40) % 4 == 0])
    logged, target = np.tile([0.3, 0.7], (60, 1)), np.tile([0.6, 0.4], (60, 1))
    full = Rounds(action, reward, logged)
    partly_known = Rounds(action, np.where(known, reward, 0.0), logged, known)
    for name in ("ips", "snips"):
        found = [ope.ESTIMATORS[name](one, target, 0 * target).mean() for one in (partly_known, full)]
        assert found[0] == pytest.approx(found[1])
    assert partly_known.known_rounds == 20 and partly_known.take(np.arange(10)).known_rounds == 5
    assert ope.overlap(partly_known, target).effective == pytest.approx(60 / (0.36 / (0.3 / 2) + 0.16 / (0.7 / 4)))
    silent = Rounds(action, np.where(known, reward, 0.0), logged, known & (action == 0))
    assert ope.overlap(silent, target).unsupported == pytest.approx(0.4)


def test_self_normalised_intervals_are_the_jackknifes() -> None:
    """Leaving out each round in turn gives the same standard error, up to the factor n / (n - 1)."""
    rounds, target, model = logged(2, n=60)
    w, r = ope.importance(rounds, target), rounds.reward
    left = np.array([(w @ r - w[i] * r[i]) / (w.sum() - w[i]) for i in range(60)])
    error = np.sqrt(59 / 60 * ((left - left.mean()) ** 2).sum())
    assert ope.snips(rounds, target, model).std(ddof=1) / np.sqrt(60) == pytest.approx(error * 60 / 59)


def test_self_normalised_dr_divides_the_correction_by_the_weights() -> None:
    """Its mean is the textbook estimate."""
    rounds, target, model = logged(3)
    weights, missed = ope.importance(rounds, target), rounds.reward - model[np.arange(400), rounds.action]
    expected = (target * model).sum(1).mean() + weights @ missed / weights.sum()
    assert ope.self_normalised_dr(rounds, target, model).mean() == pytest.approx(expected)


@pytest.mark.parametrize(("off", "worse"), [(0.02, "dr"), (0.5, "dm")])
def test_switch_uses_the_model_for_extreme_weights(off: float, worse: str) -> None:
    """With a good reward model SWITCH has less error than doubly robust, and with a poor one less than the model alone.
    """
    rng, errors = np.random.default_rng(0), {"switch_dr": 0.0, worse: 0.0}
    n, truth = 200, np.array([0.3, 0.8])
    logged, target = np.tile([0.99, 0.01], (n, 1)), np.tile([0.5, 0.5], (n, 1))
    for _ in range(200):
        action = (rng.random(n) < 0.01).astype(np.intp)
        reward = (rng.random(n) < truth[action]).astype(float)
        for name in errors:
            found = ope.ESTIMATORS[name](Rounds(action, reward, logged), target, np.tile(truth - off, (n, 1)))
            errors[name] += (found.mean() - 0.55) ** 2
    assert errors["switch_dr"] < 0.8 * errors[worse]


def test_extreme_weights_are_clipped_at_the_root_of_n() -> None:
    """A round of weight 90 among 100 rounds counts with weight 10."""
    logged = np.tile([1 - 1 / 90, 1 / 90], (100, 1))
    rounds = Rounds((np.arange(100) < 1).astype(np.intp), np.full(100, 3.0), logged)
    assert ope.clipped_ips(rounds, np.tile([0.0, 1.0], (100, 1)), logged).sum() == pytest.approx(10 * 3.0)


def test_the_reward_model_finds_linear_rewards() -> None:
    """They have an intercept, a common slope and one per model, with queries far from the origin; a model without
    answers is predicted as the mean of all.
    """
    rng = np.random.default_rng(0)
    x = rng.normal([5.0, -2.0, 0.0], 1.0, (2000, 3))
    own = np.array([[0.5, -0.5, 0.0], [0.3, 0.0, 0.2]])
    truth = np.array([1.0, 2.0]) + (x @ np.array([0.1, 0.4, -0.3]))[:, None] + x @ own.T
    action = rng.integers(0, 2, 2000)
    rounds = Rounds(action, truth[np.arange(2000), action], np.tile([0.5, 0.5, 0.0], (2000, 1)))
    found = ope.cross_fitted(x, rounds, penalty=1e-6)
    assert np.abs(found[:, :2] - truth).max() < 0.02
    assert found[:, 2].mean() == pytest.approx(rounds.reward.mean(), abs=0.05)


def test_the_expected_variance_is_that_of_many_logs() -> None:
    """It is the variance of the mean correction under known noise. Where one of two equally likely choices counts, half
    of the rounds are effective.
    """
    rng, n = np.random.default_rng(0), 20
    logged = rng.dirichlet([5.0, 5.0, 5.0], n)
    change, noise = rng.normal(size=(n, 3)), np.array([0.5, 1.0, 2.0])
    rounds = Rounds(np.zeros(n, np.intp), np.zeros(n), logged)
    drawn = (rng.random((20_000, n, 1)) > logged.cumsum(1)).sum(2)
    weights = (change / logged)[np.arange(n), drawn]
    means = (weights * rng.normal(size=drawn.shape) * np.sqrt(noise)[drawn]).mean(1)
    assert ope.promised(rounds, change, noise)[0] == pytest.approx(means.var(), rel=0.05)
    even = Rounds(np.zeros(n, np.intp), np.zeros(n), np.full((n, 2), 0.5))
    assert ope.promised(even, np.tile([1.0, 0.0], (n, 1)), np.ones(2))[1] == pytest.approx(n / 2)


@given(seed=st.integers(0, 50), most=st.sampled_from([0.0, 0.1, 0.3]))
def test_a_log_is_used_from_where_it_supports_the_policy(seed: int, most: float) -> None:
    """The longest recent part with support equals the one found by trying all."""
    rng = np.random.default_rng(seed)
    logged = (rng.random((12, 3)) < np.linspace(0.2, 1.1, 12)[:, None]).astype(float)
    target = rng.dirichlet(np.ones(3), 12)
    missing = (target * (logged == 0)).sum(1)
    starts = [start for start in range(12) if missing[start:].mean() <= most]
    assert ope.supported_from(logged, target, most) == (starts[0] if starts else 0)
