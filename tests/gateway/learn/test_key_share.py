"""The influence of one key on what a route learns is bounded by its share."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
import pytest

from gateway.learn.dataset import Log, Scored, log_of
from gateway.learn.key_share import KeyShares, bounded, speaker_of
from gateway.learn.online import Learner
from gateway.learn.retrain import trained
from routers.bandit import Bandit
from routers.registry import open_router
from routers.simple import Weighted
from routers.types import Knobs, Router
from tests.gateway.learn.world import Town, candidates, described

EVEN = Weighted({"small": 1.0, "middle": 1.0, "large": 1.0})


def of_keys(rows: list[Scored], keys: str) -> list[Scored]:
    """The same decisions with alternating keys; key x claims that only the small model is ever right."""
    return [
        (msgspec.structs.replace(record, key_id=key), float(record.model == "small") if key == "x" else score)
        for (record, score), key in zip(rows, keys * len(rows), strict=False)
    ]


def shares(log: Log) -> dict[str, float]:
    said = Counter(speaker_of(log.records[i])[-1] for i in np.flatnonzero(log.labelled).tolist())
    return {key: count / said.total() for key, count in said.items()}


def preferred(router: Router, n: int = 100) -> float:
    """The small model's share, without exploration."""
    town = Town(77)
    knobs = Knobs(cost_weight=0.0, explore=False)
    return sum(
        router.choose(described(town.question()[1]), candidates(), knobs, 0.5).model == "small" for _ in range(n)
    ) / n


@pytest.mark.parametrize(
    ("keys", "most", "loudest"),
    [("xxxxxxxab", 0.3, 0.34), ("xxxxa", 0.5, 0.5), ("xxxxab", 0.4, 0.4), ("xab", 0.5, 0.34)],
)
def test_no_key_exceeds_its_share(keys: str, most: float, loudest: float) -> None:
    """Other keys keep all scores; a share that so few keys can't keep becomes an equal one; the choice is always the
    same.
    """
    log = log_of(of_keys(Town(1).decisions(EVEN, 450), keys))
    found = bounded(log, most)
    assert loudest - 0.01 < max(shares(found).values()) <= loudest + 1e-9
    for i in np.flatnonzero(log.labelled & ~found.labelled).tolist():
        assert log.records[i].key_id == "x"
    assert np.array_equal(bounded(log, most).score, found.score, equal_nan=True)
    assert not bounded(found.rows(~found.labelled), most).labelled.any()


@pytest.mark.parametrize(
    ("keys", "most", "told"), [("xxxxxxab", 0.4, 0.4), ("xxxxab", 0.2, 1 / 3), ("xxxxa", 0.3, 0.5), ("xab", 0.5, 1 / 3)]
)
def test_a_worker_learns_a_keys_feedback_up_to_its_share(keys: str, most: float, told: float) -> None:
    """Other keys' feedback counts fully. When the busy key has been silent for the whole window, its feedback counts
    again.
    """
    record, shares, n = Town(5).decisions(EVEN, 1)[0][0], KeyShares(most), 3000
    said = [msgspec.structs.replace(record, id=f"dec_{i}", key_id=keys[i % len(keys)]) for i in range(n)]
    heard = [one.key_id for one in said if shares.heard(one)][100:]
    assert heard.count("x") / len(heard) == pytest.approx(told, abs=0.03)
    assert heard.count("a") == pytest.approx(n / len(keys) * keys.count("a"), abs=60)
    for i in range(500):
        shares.heard(msgspec.structs.replace(record, id=f"more_{i}", key_id="abc"[i % 3]))
    assert all(shares.heard(one) for one in said[: len(keys)] if one.key_id == "x")


def test_a_single_key_and_a_route_without_a_bound_keep_all() -> None:
    """No score is discarded."""
    alone = log_of(of_keys(Town(2).decisions(EVEN, 50), "a"))
    several = log_of(of_keys(Town(2).decisions(EVEN, 50), "xxxa"))
    assert bounded(alone, 0.1).labelled.all() and bounded(several, 1.0).labelled.all()
    keys = KeyShares(0.1)
    assert all(keys.heard(record) for record in alone.records)


def test_false_scores_of_a_busy_key_do_not_change_training() -> None:
    """Two of three scores are false. With the bound the small model is preferred for sums at most, where it is as good
    as the others, and not for poems, where it is rarely right.
    """
    log = log_of(of_keys(Town(3).decisions(EVEN, 2000), "xxxxxxxxxxxxxxxxabcdefgh"))
    assert preferred(trained(log, "linear", "1", 0.1).router) > 0.9
    assert preferred(trained(bounded(log, 0.2), "linear", "1", 0.1).router) < 0.6


def test_false_scores_of_a_busy_key_do_not_change_a_bandit() -> None:
    """The same holds for what a worker learns while it serves."""
    found = {}
    for most in (1.0, 0.2):
        bandit = open_router("bandit", explore=0.1)
        assert isinstance(bandit, Bandit)
        learner = Learner(bandit, candidates())
        learner.key_shares.most = most
        for record, score in of_keys(Town(4).decisions(EVEN, 1000), "xxxxxxxxxxxxxxxxabcdefgh"):
            learner.outcome(record)
            assert score is not None
            learner.feedback(record, score)
        found[most] = preferred(bandit)
    assert found[1.0] > 0.9 and found[0.2] < 0.6
