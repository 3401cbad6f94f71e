"""Where a conversation is warm, and what that is worth."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.bench import agents
from cache.prefix import PrefixMap, RecentTokens, Warmth, chain, home, warmest

FINE = Warmth(ttl_s=300, least_tokens=0, step_tokens=1)


def known(max_nodes: int = 1000, warmth: Warmth = FINE) -> PrefixMap:
    """A map of two deployments whose reports are believed in full."""
    return PrefixMap(max_nodes=max_nodes, warmths={"a": warmth, "b": warmth})


def talk(*pieces: str, tenant: str = "t") -> list[tuple[bytes, int]]:
    """A conversation of pieces of 1,000 tokens each."""
    return chain(tenant, [piece.encode() for piece in pieces], [1000] * len(pieces))


def test_the_longest_known_beginning_counts() -> None:
    """A longer conversation is warm as far as it was seen, on the deployment that saw it only."""
    view = known()
    view.record(talk("system", "hello"), "a", now_s=0)
    prior = view.cached_share(talk("system", "hello"), "a", now_s=1)
    assert 0.8 < prior < 1
    assert view.cached_share(talk("system", "hello", "more", "yet"), "a", now_s=1) == pytest.approx(prior / 2)
    assert view.cached_share(talk("system", "else"), "a", now_s=1) == pytest.approx(prior / 2)
    assert view.cached_share(talk("other", "hello"), "a", now_s=1) == 0
    assert view.cached_share(talk("system", "hello"), "b", now_s=1) == 0
    assert view.cached_share([], "a", now_s=1) == 0


def test_no_tenant_warms_another() -> None:
    """The same words of another tenant are cold."""
    view = known()
    view.record(talk("system"), "a", now_s=0)
    assert view.cached_share(talk("system", tenant="u"), "a", now_s=1) == 0


def test_warmth_ends() -> None:
    """After its time, below its least length or after a restart nothing is expected; use refreshes it."""
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
    """A deployment that never reports cached tokens is soon expected to have none, one that does to have all."""
    view = known()
    for n in range(400):
        view.record(talk("s", "t"), "a", now_s=n / 10, cached_tokens=0)
        view.record(talk("s", "t"), "b", now_s=n / 10, cached_tokens=2000)
    assert view.cached_share(talk("s", "t"), "a", now_s=40) < 0.05
    assert view.cached_share(talk("s", "t"), "b", now_s=40) > 0.95


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4), max_size=30), st.integers(1, 8))
def test_the_map_is_bounded_and_shares_are_shares(talks: list[list[str]], max_nodes: int) -> None:
    """Whatever is recorded, the nodes stay within their number and every share within 0 and 1."""
    view = known(max_nodes)
    for n, pieces in enumerate(talks):
        view.record(talk(*pieces), "ab"[n % 2], now_s=n, cached_tokens=n * 100)
        assert len(view) <= max_nodes
        assert 0 <= view.cached_share(talk(*pieces), "a", now_s=n) <= 1


def test_affinity_is_soft() -> None:
    """A conversation stays where it is warm, unless that is far out of balance; a new one goes to the idle. Few prompts
    are no overload.
    """
    assert warmest([0.9, 0.0], [120.0, 80.0], 1.0) == [0]
    assert warmest([0.9, 0.0], [400.0, 10.0], 1.0) == [1]
    assert warmest([0.9, 0.0], [400.0, 10.0], 100.0) == [0]
    assert warmest([0.0, 0.0, 0.0], [2.0, 1.0, 3.0], 1.0) == [1]
    assert warmest([0.5, 0.5], [0.0, 0.0], 1.0) == [0, 1]


def test_what_was_taken_fades() -> None:
    """By half in a half-life; a clock that goes back takes nothing away."""
    recent = RecentTokens()
    recent.add(800.0, 10.0)
    recent.add(200.0, 10.0 + recent.HALF_LIFE_S)
    assert recent.at(10.0 + recent.HALF_LIFE_S) == pytest.approx(600.0)
    assert recent.at(0.0) == pytest.approx(600.0)


def test_agents_keep_their_caches() -> None:
    """Agents over eight deployments read nearly all of their prompts from caches, in balance."""
    soft, blind = agents(4000, 8, soft=True), agents(4000, 8, soft=False)
    assert soft["cached_share"] >= 0.95 > 0.3 > blind["cached_share"]
    assert soft["imbalance"] < 1.3


def test_workers_that_know_nothing_of_each_other_send_a_conversation_to_the_same_place() -> None:
    """Any of four workers gets the next turn."""
    agreed = agents(4000, 8, soft=True, workers=4)
    assert agreed["cached_share"] > 0.93 and agreed["imbalance"] < 1.3
    assert agents(4000, 8, soft=True, workers=4, homes=False)["cached_share"] < 0.6


def test_a_home_follows_the_weights_and_moves_for_nobody_else() -> None:
    """A deployment of three times the weight has three times the conversations; one that leaves moves only its own."""
    openings = [b"%d" % n for n in range(4000)]
    all_ = {"a": 3.0, "b": 1.0, "c": 1.0}
    before = {opening: home(opening, all_) for opening in openings}
    counts = Counter(before.values())
    assert {name: counts[name] / 4000 for name in all_} == pytest.approx({"a": 0.6, "b": 0.2, "c": 0.2}, abs=0.025)
    without = {opening: home(opening, {"a": 3.0, "b": 1.0}) for opening in openings}
    assert all(without[opening] == name for opening, name in before.items() if name != "c")


def test_a_map_needs_room() -> None:
    """No nodes at all is an error where it is configured."""
    with pytest.raises(ValueError, match="max_nodes"):
        PrefixMap(max_nodes=0)
