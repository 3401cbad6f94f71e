"""Cache and model choice together, in short form."""

from __future__ import annotations

from functools import partial

import pytest

from cache.eviction import LeastExpectedCost
from routers.select import exchange_rate
from tests.bench.multiplexing import (
    CACHES,
    CHEAPEST_ANSWER,
    CHOOSERS,
    JOINT,
    PLAIN,
    Case,
    cached,
    follow,
    measured,
    play,
    published,
    table_of,
)  # fmt: skip

REAL = ("always large", "small first", "learned")


def test_together_they_are_the_cheapest() -> None:
    """On the published kind of world, where neither model is the cheaper one throughout, expected cost with a learned
    choice costs less than half of every other real pair, and less than a tenth of LRU without a choice.
    """
    found = cached(published(0.9, 100.0, 3000, seed=4), 0.5, seed=4)
    costs = {(cache, way): found[cache, way].cost for cache in CACHES for way in REAL}
    assert min(costs, key=costs.__getitem__) == JOINT
    assert costs[JOINT] < 0.1 * costs[PLAIN]
    assert costs.pop(JOINT) < 0.5 * min(costs.values())


def test_a_choice_makes_easy_answers_worth_less() -> None:
    """Where an oracle chooses the models, least expected cost answers fewer requests from the cache than where the
    large one always answers, and saves more by it.
    """
    world = follow(0.9, 100.0, 1500, 1, seed=0)
    room = int(1000 * world.size.sum() * 0.1)
    ways = (CHOOSERS[way](world, 0) for way in ("always large", "oracle"))
    large, chosen = (play(world, LeastExpectedCost(room), way) for way in ways)
    assert chosen.hits < large.hits
    assert chosen.cost < 0.5 * large.cost


def test_seeds_repeat() -> None:
    """The same seed gives the same figures; no real pair beats the oracle with the same cache; the table is whole."""
    case = Case("short", partial(follow, 0.9, 10.0, 200, 2), (0.1,))
    one, other = (measured(case, (3, 4)) for _ in range(2))
    assert one == other
    cells = one["short, room 10%"]
    for cache in ("no cache", "LRU", "LFU"):
        assert all(cells[cache, way]["cost"] >= cells[cache, "oracle"]["cost"] for way in REAL)
    assert cells[PLAIN]["times"] == 1.0
    assert table_of(one).row_count == 1 + len(CACHES)


def test_the_cost_weight_orders_by_expected_cost() -> None:
    """At its exchange rate a point of quality is worth one call of the large model."""
    assert exchange_rate(CHEAPEST_ANSWER) == pytest.approx(1.0)
