"""Strategies as arms: of equally good ones the one with fewer steps wins, query by query, with exact propensities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routers.bench.strategy_bandit import NAMES, Ways, compared
from routers.features import shipped_featurizer
from routers.projection import Projection
from routers.registry import bandit_axes
from routers.strategy_bandit import StrategyBandit


def flat(dims: int = 4) -> Projection:
    """The identity as the main axes."""
    return Projection().restore({"mean_": np.zeros(dims, np.float32), "axes_": np.eye(dims, dtype=np.float32)})


def vectors(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)


def teach(bandit: StrategyBandit, rounds: int, seed: int = 0) -> None:
    """Checking helps where the first axis is positive and costs two more calls; elsewhere it changes nothing."""
    rng = np.random.default_rng(seed)
    for x in vectors(seed, rounds):
        pick = bandit.choose(x, float(rng.random()))
        chance = 0.9 if x[0] < 0 or pick.arm == "verify" else 0.3
        bandit.learn(x, pick.arm, float(rng.random() < chance), 3 if pick.arm == "verify" else 1)


def test_steps_are_paid_only_where_they_help() -> None:
    """After some hundred answers hard queries are verified and easy ones are not."""
    bandit = StrategyBandit(("none", "verify"), flat(), step_price=0.1)
    teach(bandit, 600)
    assert bandit.choose(np.array([2, 0, 0, 0], np.float32), 0.5, explore=False).arm == "verify"
    assert bandit.choose(np.array([-2, 0, 0, 0], np.float32), 0.5, explore=False).arm == "none"


def test_another_price_needs_no_new_answers() -> None:
    """Scores and steps are learned separately: at a price above any answer's value nothing is verified."""
    bandit = StrategyBandit(("none", "verify"), flat(), step_price=0.1)
    teach(bandit, 600)
    dear = StrategyBandit(("none", "verify"), flat(), step_price=0.6)
    dear.state = bandit.state
    assert dear.choose(np.array([2, 0, 0, 0], np.float32), 0.5, explore=False).arm == "none"


@given(st.integers(0, 60), st.floats(0, 0.999), st.floats(0.01, 1.0))
@settings(max_examples=30, deadline=None)
def test_every_arm_keeps_its_share(rounds: int, draw: float, explore: float) -> None:
    """Whatever was learned, the probabilities sum to 1, and the propensity is that of the drawn arm."""
    bandit = StrategyBandit(("none", "verify", "refine"), flat(), 0.05, explore)
    teach(bandit, rounds)
    pick = bandit.choose(vectors(1, 1)[0], draw)
    assert sum(pick.probabilities.values()) == pytest.approx(1.0)
    assert min(pick.probabilities.values()) >= explore / 3 - 1e-9
    assert pick.propensity == pick.probabilities[pick.arm]


def test_replicas_add_up() -> None:
    """The merged sums of two halves equal those of the whole, and a corrected score replaces the first."""
    whole, one, two = (StrategyBandit(("none", "verify"), flat(), 0.1) for _ in range(3))
    rng = np.random.default_rng(3)
    for i, x in enumerate(vectors(3, 200)):
        arm, score = ("none", "verify")[i % 2], float(rng.random() < 0.5)
        whole.learn(x, arm, score, 1 + i % 2)
        half = (one, two)[i // 2 % 2]
        half.learn(x, arm, 0.0, 1 + i % 2)
        half.amend(x, arm, 0.0, score)
    one.set_others(two.state)
    x = vectors(4, 1)[0]
    assert one.seen == whole.seen == 200
    assert np.allclose(one.worth(x), whole.worth(x))


def test_an_arm_is_worth_its_score_less_its_steps() -> None:
    """`verify` always scores .9 with three calls, so it costs two steps; `plain` scores .4 with one call. `none` had no
    call that answered, which costs no step. An arm without evidence is expected to score .6.
    """
    bandit, x = StrategyBandit(("plain", "verify", "none"), flat(), 0.1), np.zeros(4, np.float32)
    assert bandit.worth(x)[0] == pytest.approx(0.6)
    for _ in range(2000):
        bandit.learn(x, "verify", 0.9, 3)
        bandit.learn(x, "plain", 0.4, 1)
        bandit.learn(x, "none", 0.1, 0)
    assert bandit.worth(x)[0] == pytest.approx([0.4, 0.9 - 0.1 * 2, 0.1], abs=0.01)
    bandit.amend(x, "plain", 0.4, 200.4)
    assert bandit.worth(x)[0][0] == pytest.approx(0.4 + 200 / 2000, abs=0.01)
    pick = bandit.choose(x, 0.0, explore=False)
    assert pick.arm == "verify" and pick.probabilities == {"plain": 0.0, "verify": 1.0, "none": 0.0}


def test_an_unknown_arm_is_refused() -> None:
    """The error names the known ones."""
    with pytest.raises(ValueError, match="no strategy 'vote' among none, verify"):
        StrategyBandit(("none", "verify"), flat(), 0.1).learn(vectors(0, 1)[0], "vote", 1.0, 1)


def test_a_query_without_a_vector_counts_as_average() -> None:
    """A router that reads no features leaves the vector empty."""
    bandit = StrategyBandit(("none", "verify"), bandit_axes(), 0.1)
    pick = bandit.choose(np.zeros(0, np.float32), 0.2)
    bandit.learn(shipped_featurizer().describe("What is a prime?").vector, pick.arm, 1.0, 1)
    assert sum(pick.probabilities.values()) == pytest.approx(1.0)


def test_learned_arms_beat_every_fixed_strategy_where_queries_differ() -> None:
    """In a seeded world with two kinds of questions, recognisable by their texts, learning from scratch beats the best
    fixed strategy and epsilon-greedy (`python -m routers.bench.strategy_bandit` reports the result on logged outcomes).
    """
    rng, featurizer = np.random.default_rng(0), shipped_featurizer()
    texts = [(f"Compute {i} * {i + 7} and add {i}.", f"Write a poem about the number {i}.")[i % 2] for i in range(500)]
    x = np.stack([featurizer.describe(text).vector for text in texts])
    chance = np.array([(0.2, 0.5, 0.9) if i % 2 == 0 else (0.9, 0.9, 0.9) for i in range(500)])
    score = (rng.random(chance.shape) < chance).astype(float)
    found = compared(x, Ways(score, np.tile([1.0, 2.0, 3.0], (500, 1))), 0.1, range(3))
    assert set(NAMES) == {"one", "two", "three"}
    assert found["gain over the best fixed way"] > 0.03
    assert found["gain over epsilon-greedy"] > 0.03
