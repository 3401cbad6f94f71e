"""Which deployment has a conversation's beginning cached, and what that is worth."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.bench import agents
from cache.prefix import PrefixMap, RecentTokens, Warmth, chain, home, warmest

FINE = Warmth(ttl_s=300, least_tokens=0, step_tokens=1)


def known(max_nodes: int = 1000, warmth: Warmth = FINE) -> PrefixMap:
    """A map of two deployments whose reported cache reads are fully trusted."""
    return PrefixMap(max_nodes=max_nodes, warmths={"a": warmth, "b": warmth})


def talk(*pieces: str, tenant: str = "t") -> list[tuple[bytes, int]]:
    """A conversation whose parts have 1,000 tokens each."""
    return chain(tenant, [piece.encode() for piece in pieces], [1000] * len(pieces))


def test_the_longest_known_beginning_counts() -> None:
    """A longer conversation counts as cached up to the part that was seen before, on that deployment only."""
    view = known()
    view.record(talk("system", "hello"), "a", now_s=0)
    prior = view.cached_share(talk("system", "hello"), "a", now_s=1)
    assert 0.8 < prior < 1
    assert view.cached_share(talk("system", "hello", "more", "yet"), "a", now_s=1) == pytest.approx(prior / 2)
    assert view.cached_share(talk("system", "else"), "a", now_s=1) == pytest.approx(prior / 2)
    assert view.cached_share(talk("other", "hello"), "a", now_s=1) == 0
    assert view.cached_share(talk("system", "hello"), "b", now_s=1) == 0
    assert view.cached_share([], "a", now_s=1) == 0


def test_tenants_share_no_cached_beginning() -> None:
    """The same text of another tenant counts as not cached."""
    view = known()
    view.record(talk("system"), "a", now_s=0)
    assert view.cached_share(talk("system", tenant="u"), "a", now_s=1) == 0


def test_cached_beginnings_expire() -> None:
    """Nothing is expected after the time to live, below the minimum length or after a restart; use renews an entry."""
    view = known(warmth=Warmth(ttl_s=300, least_tokens=1500, step_tokens=128))
    view.record(talk("s"), "a", now_s=0)
    assert view.cached_share(talk("s"), "a", now_s=1) == 0
    view.record(talk("s", "t"), "a", now_s=0)
    assert view.cached_share(talk("s", "t"), "a", now_s=299) > 0
    view.record(talk("s", "t"), "a", now_s=299)
    assert view.cached_share(talk("s", "t"), "a", now_s=500) > 0
    assert view.cached_share(talk("s", "t"), "a", now_s=600) == 0
    view.record(talk("s", "t"), "a", now_s=600)
    view.forget("a")
    assert view.cached_share(talk("s", "t"), "a", now_s=601) == 0


def test_usage_teaches_how_much_is_really_cached() -> None:
    """A deployment that never reports cached tokens is soon expected to have none, and one that always does to have
    all.
    """
    view = known()
    for n in range(400):
        view.record(talk("s", "t"), "a", now_s=n / 10, cached_tokens=0)
        view.record(talk("s", "t"), "b", now_s=n / 10, cached_tokens=2000)
    assert view.cached_share(talk("s", "t"), "a", now_s=40) < 0.05
    assert view.cached_share(talk("s", "t"), "b", now_s=40) > 0.95


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4), max_size=30), st.integers(1, 8))
def test_the_map_is_bounded_and_shares_are_shares(talks: list[list[str]], max_nodes: int) -> None:
    """Whatever is recorded, the number of nodes stays bounded, and every share lies within 0 and 1."""
    view = known(max_nodes)
    for n, pieces in enumerate(talks):
        view.record(talk(*pieces), "ab"[n % 2], now_s=n, cached_tokens=n * 100)
        assert len(view) <= max_nodes
        assert 0 <= view.cached_share(talk(*pieces), "a", now_s=n) <= 1


def test_affinity_is_soft() -> None:
    """A conversation stays with its deployment unless that is far busier than the others; a new one goes to the least
    busy. A few prompts don't count as overload.
    """
    assert warmest([0.9, 0.0], [120.0, 80.0], 1.0) == [0]
    assert warmest([0.9, 0.0], [400.0, 10.0], 1.0) == [1]
    assert warmest([0.9, 0.0], [400.0, 10.0], 100.0) == [0]
    assert warmest([0.0, 0.0, 0.0], [2.0, 1.0, 3.0], 1.0) == [1]
    assert warmest([0.5, 0.5], [0.0, 0.0], 1.0) == [0, 1]


def test_recorded_load_decays() -> None:
    """Load halves in each half-life; a clock that is set back removes none."""
    recent = RecentTokens()
    recent.add(800.0, 10.0)
    recent.add(200.0, 10.0 + recent.HALF_LIFE_S)
    assert recent.at(10.0 + recent.HALF_LIFE_S) == pytest.approx(600.0)
    assert recent.at(0.0) == pytest.approx(600.0)


def test_agents_read_most_of_their_prompts_from_caches() -> None:
    """Agents that share eight deployments read nearly all of their prompts from caches, and the load is balanced."""
    soft, blind = agents(4000, 8, soft=True), agents(4000, 8, soft=False)
    assert soft["cached_share"] >= 0.95 > 0.3 > blind["cached_share"]
    assert soft["imbalance"] < 1.3


def test_workers_without_shared_state_choose_the_same_deployment() -> None:
    """Any of four workers sends a conversation's next turn to the same deployment."""
    agreed = agents(4000, 8, soft=True, workers=4)
    assert agreed["cached_share"] > 0.93 and agreed["imbalance"] < 1.3
    assert agents(4000, 8, soft=True, workers=4, homes=False)["cached_share"] < 0.6


def test_conversations_are_shared_by_weight_and_move_only_when_they_must() -> None:
    """A deployment of triple weight has triple the conversations; if one is removed, only its own conversations move.
    """
    openings = [b"%d" % n for n in range(4000)]
    all_ = {"a": 3.0, "b": 1.0, "c": 1.0}
    before = {opening: home(opening, all_) for opening in openings}
    counts = Counter(before.values())
    assert {name: counts[name] / 4000 for name in all_} == pytest.approx({"a": 0.6, "b": 0.2, "c": 0.2}, abs=0.025)
    without = {opening: home(opening, {"a": 3.0, "b": 1.0}) for opening in openings}
    assert all(without[opening] == name for opening, name in before.items() if name != "c")


def test_a_map_needs_room() -> None:
    """A map without nodes is refused when it is made."""
    with pytest.raises(ValueError, match="max_nodes"):
        PrefixMap(max_nodes=0)
