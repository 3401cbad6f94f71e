"""The most that a prefix cache could find."""

import itertools
import random

import pytest

from local_models.bench import first_token_case
from local_models.bench_prefixes import (
    SIZE,
    Asked,
    LeadingFirst,
    best_by_future,
    best_by_odds,
    hit_rate,
    prefix_cases,
    prefix_trace,
)
from local_models.tiers import name_of


def whole(number: int, blocks: int) -> list[int]:
    """A prompt of this many blocks that shares no beginning with a prompt of another number."""
    return [number] * (blocks * SIZE)


def requests_for(numbers: list[int], blocks: int = 1) -> list[Asked]:
    """Prompts of whole blocks and one further token."""
    return [Asked([*whole(number, blocks), 999], 1, True, ((0.1, 9),)) for number in numbers]


@pytest.mark.parametrize("kind", ["shared", "turns"])
@pytest.mark.parametrize("blocks", [30, 200])
def test_no_eviction_rule_finds_more_than_is_possible(kind: str, blocks: int) -> None:
    """Each rule finds at most as much as a cache that knows the future, and that at most as much as an unbounded one.
    """
    trace = prefix_trace(kind, 5, 120)
    best = best_by_future(trace, blocks)
    assert max(hit_rate(trace, blocks, None), hit_rate(trace, blocks, 1.0)) <= best + 1e-9
    assert best <= hit_rate(trace, 10_000, None) + 1e-9


def test_with_memory_for_everything_all_is_found() -> None:
    """The bound of a cache that evicts nothing is what an unbounded one finds."""
    trace = prefix_trace("shared", 6, 80)
    assert best_by_future(trace, 10_000) == pytest.approx(hit_rate(trace, 10_000, None))


def test_the_bound_that_knows_the_future_is_optimal() -> None:
    """On short traces of single blocks it equals the best of every choice of what to keep."""
    rng = random.Random(3)
    for _ in range(20):
        numbers = [rng.randrange(4) for _ in range(7)]
        again = [(numbers[:at][::-1].index(number), at) for at, number in enumerate(numbers) if number in numbers[:at]]
        spans = [(at - 1 - gap, at) for gap, at in again]
        room = 1  # in addition to the request's own two blocks
        kept = (
            [span for span, take in zip(spans, choice, strict=True) if take]
            for choice in itertools.product((False, True), repeat=len(spans))
        )
        most = max(
            len(some)
            for some in kept
            if all(sum(since < at < until for since, until in some) <= room for at in range(len(numbers)))
        )
        assert best_by_future(requests_for(numbers), 3) * (SIZE + 1) * len(numbers) == pytest.approx(most * SIZE)


def test_the_expected_bound_counts_what_may_be_asked_again() -> None:
    """One useful block is cached, and requested next time with a probability of one in ten."""
    trace = requests_for([1, 2])
    assert best_by_odds(trace[:1], 1) == 0.0
    assert best_by_odds(trace, 1) == pytest.approx(SIZE * 0.1 / (2 * (SIZE + 1)))
    one_off = Asked(whole(7, 1), 0, False, trace[0].odds)
    assert best_by_odds([trace[0], one_off, trace[1]], 1) == pytest.approx(SIZE * 0.1 / (3 * SIZE + 2))


def test_repeated_prompts_outlive_others() -> None:
    """With memory for a tenth of what is repeated, the cache finds at least twice what LRU does on shared beginnings,
    and on average no less on conversations.
    """
    for kind, factor in (("shared", 2.0), ("turns", 1.0)):
        traces = [prefix_trace(kind, seed, 400) for seed in (21, 22)]
        ours, lru = (sum(hit_rate(trace, 30, alpha) for trace in traces) for alpha in (1.0, None))
        assert ours >= factor * lru


def test_an_engine_finds_what_the_simulation_says() -> None:
    """A real engine, whose first tokens are timed, finds as many cached blocks of a trace as the simulation; without
    sharing it finds none.
    """
    told = first_token_case("shared", 12)
    blocks = told["kv_tokens"] // SIZE
    assert told["hit_rate"]["no cache"] == 0 and min(figure["value"] for figure in told["ms"].values()) > 0
    assert told["hit_rate"]["marconi"] == pytest.approx(hit_rate(prefix_trace("shared", 1, 12), blocks, 1.0), abs=0.02)


def test_leading_blocks_are_dropped_first() -> None:
    """Within a conversation this is Pensieve's order; a conversation that was idle for long is dropped before one used
    just now.
    """
    kept = LeadingFirst(3)
    first, second = whole(1, 3), whole(2, 3)
    names = {1: [b""], 2: [b""]}
    for number, prompt in ((1, first), (2, second)):
        for at in range(0, 3 * SIZE, SIZE):
            names[number].append(name_of(names[number][-1], prompt[at : at + SIZE]))
    kept.ask(first)
    for name in names[1][1:]:
        kept.put(name, 0)
    assert kept.get(names[1][1:]) == [None] * 3 and kept.beyond == 0
    kept.ask(second)
    kept.put(names[2][3], 0)
    assert kept.get(names[1][1:]) == [] and kept.beyond == 2
    for name in names[2][1:3]:
        kept.put(name, 0)
    assert kept.get(names[2][1:]) == [None] * 3 and kept.get(names[1][1:]) == [] and kept.beyond == 0


def test_both_orders_of_dropping_are_compared() -> None:
    """Figures have intervals over rounds; with memory for everything the order doesn't matter."""
    rows = prefix_cases(60, 2)
    assert len(rows) == 4
    for row in rows:
        assert len(row["beside"]) == 3 and all(figure["half_width"] >= 0 for figure in row["hit_rate"].values())
    trace = prefix_trace("turns", 1, 60)
    assert hit_rate(trace, 30, 1.0, leading=LeadingFirst(9_000)) == pytest.approx(hit_rate(trace, 30, 1.0, 9_000))
