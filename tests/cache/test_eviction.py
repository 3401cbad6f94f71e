"""Eviction: which entries are removed when the cache is full."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import eviction
from cache.bench_policies import GreedyDual
from cache.eviction import LeastExpectedCost

_moves = st.lists(
    st.tuples(st.sampled_from(["admit", "touch", "drop"]), st.integers(0, 9), st.integers(1, 60), st.integers(0, 5)),
    max_size=80,
)


KINDS: tuple[Any, ...] = (GreedyDual, LeastExpectedCost)


@pytest.mark.parametrize("kind", KINDS)
@given(moves=_moves)
def test_held_bytes_stay_within_the_bound(kind: Any, moves: list[tuple[str, int, int, int]]) -> None:
    """After any operations the sizes of the held entries add up and stay within the bound, and only held entries are
    evicted.
    """
    policy = kind(100)
    held: dict[int, int] = {}
    for move, key, size, cost in moves:
        if move == "admit":
            victims = policy.admit(key, float(cost), size)
            held.pop(key, None)
            if victims is not None:
                assert set(victims) <= held.keys()
                assert len(set(victims)) == len(victims)
                held = {k: s for k, s in held.items() if k not in victims}
                held[key] = size
        elif move == "touch":
            policy.touch(key)
        else:
            policy.drop(key)
            held.pop(key, None)
        assert policy.used_bytes == sum(held.values()) <= 100


@pytest.mark.parametrize("kind", KINDS)
def test_expensive_small_and_frequent_entries_stay(kind: Any) -> None:
    """Of two entries that differ in one property, the less valuable one is evicted."""
    for worse, better, hits in (
        ((1.0, 50), (2.0, 50), 0),
        ((1.0, 50), (1.0, 40), 0),
        ((1.0, 50), (1.0, 50), 3),
    ):
        policy = kind(100)
        policy.admit("worse", *worse)
        policy.admit("better", *better)
        for _ in range(hits):
            policy.touch("better")
        for _ in range(3):
            policy.touch("new")
        assert policy.admit("new", 5.0, 50) == ["worse"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_newcomer_worth_less_than_all_is_refused(kind: Any) -> None:
    """A cheap question seen once evicts nothing; asked often enough, it does. One that can't fit never does."""
    policy = kind(100)
    assert policy.admit("held", 3.0, 100) == []
    answers = [policy.admit("new", 1.0, 100) for _ in range(6)]
    first = answers.index(["held"])
    assert 2 <= first <= 3 and answers == [*[None] * first, ["held"], *[[]] * (5 - first)]
    assert policy.admit("large", 999.0, 101) is None and "new" in policy


def worth(asked: list[int], now: int, trust: list[float]) -> float:
    """The rate of requests at those times, averaged over the memories; each memory discounts older requests."""
    rates = [
        sum(math.exp((at - now) / memory) for at in asked) / (1 + (memory * (1 - math.exp(-now / memory))))
        if memory < math.inf else len(asked) / (1 + now)
        for memory in eviction._MEMORIES
    ]  # fmt: skip
    return sum(share * rate for share, rate in zip(trust, rates, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_the_keys_of_least_expected_cost_per_byte_are_evicted(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The victims are those that the whole history of requests gives, also after forward decay has begun anew."""
    monkeypatch.setattr(eviction, "_MEMORIES", (5.0, 40.0, math.inf))
    monkeypatch.setattr(eviction, "_TURN", 3.0)
    rng, policy = random.Random(seed), LeastExpectedCost[int](100, sample=200)
    asked, paid, held = dict[int, list[int]](), dict[int, list[float]](), dict[int, int]()
    refused = 0
    for now in range(1, 300):
        key = min(int(rng.expovariate(0.3)), 9)
        asked.setdefault(key, []).append(now)
        if key in held and rng.random() < 0.8:
            policy.touch(key)
            continue
        cost, size = rng.uniform(0.5, 1.5), rng.randint(10, 40)
        paid.setdefault(key, []).append(cost)
        held.pop(key, None)
        found, trust = policy.admit(key, cost, size), policy._trust
        rank = {
            one: worth(asked[one], now, trust) * sum(paid[one]) / len(paid[one]) / bytes_
            for one, bytes_ in (held | {key: size}).items()
        }
        going, free = list[int](), 100 - sum(held.values())
        for one in sorted(held, key=rank.__getitem__):
            if free >= size:
                break
            going, free = [*going, one], free + held[one]
        if any(rank[one] > rank[key] for one in going):
            assert found is None
            refused += 1
            continue
        assert found == going
        held = {one: bytes_ for one, bytes_ in held.items() if one not in going} | {key: size}
    assert refused > 3


def test_the_memory_that_predicts_best_gets_the_most_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the shortest where popularity changes every few requests, and the longest where it never changes. Weights
    sum to one and never reach zero, and decay begins anew before a float would overflow.
    """
    monkeypatch.setattr(eviction, "_MEMORIES", (8.0, 100.0, math.inf))
    for turns, trusted in ((30, 0), (10**6, 2)):
        rng, policy = random.Random(0), LeastExpectedCost[int](100)
        for now in range(7000):
            policy.touch(now // turns * 100 + min(int(rng.expovariate(0.8)), 20))
        assert policy._trust.index(max(policy._trust)) == trusted
        assert sum(policy._trust) == pytest.approx(1.0) and min(policy._trust) > 1e-4


def test_only_the_latest_of_the_keys_not_held_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """All held keys are remembered, and only the more recent half of the others once there are too many."""
    monkeypatch.setattr(eviction, "_LEAST_REMEMBERED", 8)
    policy = LeastExpectedCost[int](100)
    policy.admit(-1, 1.0, 10)
    for key in range(100):
        policy.touch(key)
        assert len(policy._seen) <= 9
    assert -1 in policy._seen and {99, 98, 97} <= policy._seen.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_formerly_popular_entries_are_evicted(kind: Any) -> None:
    """Entries that were requested often are evicted once popularity has moved on."""
    policy = kind(1000)
    rng = random.Random(0)
    for phase in range(2):
        hits = 0
        for n in range(6000):
            key = phase * 1000 + min(int(rng.paretovariate(0.9)), 500)
            if key in policy:
                hits += n >= 3000
                policy.touch(key)
            else:
                policy.admit(key, 1.0, 10)
        assert hits > 2000
