"""Eviction: which entries are removed when the cache is full."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_a_newcomer_worth_less_than_all_is_refused() -> None:
    """A cheap question seen once evicts nothing; asked often enough, it does."""
    policy: GreedyDual[str] = GreedyDual(100)
    policy.admit("held", 3.0, 100)
    answers = [policy.admit("new", 1.0, 100) for _ in range(4)]
    assert answers == [None, None, ["held"], []]


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
