"""What the benchmarks claim holds in their short forms."""

from __future__ import annotations

import pytest

from cache.bench import Frequent, Recent, bench_tenants, eviction_traces, saved_share
from cache.eviction import LeastExpectedCost


@pytest.mark.parametrize("number", [1, 4])
def test_expected_cost_saves_more_than_recency_and_frequency(number: int) -> None:
    """On a stationary and on a drifting trace least expected cost saves more than LRU and LFU."""
    trace = eviction_traces(12_000 if number == 1 else 24_000)[number]
    room = int(1000 * trace.size.sum() * 0.02)
    saved = saved_share(trace, LeastExpectedCost(room))
    assert saved > saved_share(trace, Recent(room)) + 0.01
    assert saved > saved_share(trace, Frequent(room)) + 0.01


def test_many_tenants_weigh_what_their_vectors_weigh() -> None:
    """A hundred tenants in one structure take at most a fifth more bytes than their bare vectors."""
    figures = bench_tenants(100, 100, 16)
    assert figures["entries"] == 10_000
    assert figures["vector_bytes"] <= 1.2 * figures["plain_vector_bytes"]
