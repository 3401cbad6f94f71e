"""The claims of the benchmarks hold in their short forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cache.bench import bench_embedding
from cache.bench_eviction import _POLICIES, Trace, bench_eviction, eviction_traces, lead_half_width, saved_by_part
from cache.bench_index import bench_index, bench_tenants, median_interval
from cache.bench_policies import LFU, LRU
from cache.eviction import LeastExpectedCost


def saved_share(trace: Trace, policy: Any) -> float:
    """Share of a trace's total cost that cache hits save."""
    saved, total = saved_by_part(trace, policy).sum(0)
    return float(saved / total)


@pytest.mark.parametrize("number", [1, 4])
def test_expected_cost_saves_more_than_recency_and_frequency(number: int) -> None:
    """On a stationary and on a drifting trace, evicting the least expected cost saves more than LRU and LFU."""
    trace = eviction_traces(12_000 if number == 1 else 24_000)[number]
    room = int(1000 * trace.size.sum() * 0.02)
    saved = saved_share(trace, LeastExpectedCost(room))
    assert saved > saved_share(trace, LRU(room)) + 0.01
    assert saved > saved_share(trace, LFU(room)) + 0.01


def test_plain_policies_save_as_much_as_their_simulations() -> None:
    """LFU and GDSF, which never forget a count, save as much as in plain simulations of them; policies with ageing save
    less.
    """
    trace = eviction_traces(150_000)[2]
    room = int(1000 * trace.size.sum() * 0.02)
    for name in ("LFU", "GDSF"):
        assert saved_share(trace, _POLICIES[name](room)) == pytest.approx(0.472, abs=0.003)


def test_the_interval_of_a_lead_is_paired_by_part() -> None:
    """A policy that leads by the same amount in every part has an interval of width zero."""
    cost = np.full(4, 10.0)
    better, worse = np.column_stack([[5.0, 6, 7, 8], cost]), np.column_stack([[4.0, 5, 6, 7], cost])
    assert lead_half_width(better, worse) == pytest.approx(0.0, abs=1e-12)
    assert lead_half_width(better, np.column_stack([[6.0, 4, 8, 5], cost])) > 0.1


def test_the_table_lays_known_figures_beside_ours(capsys: pytest.CaptureFixture[str]) -> None:
    """Every trace has a row at both cache sizes, with the published saving where there is one."""
    rows = bench_eviction(1200)
    assert len(rows) == 10 and all(len(row["here"]) == 5 for row in rows.values())
    assert rows["drift x6, 10:1, 2%"]["known"]["GDSF"] == 0.437 and not rows["zipf 0.6, 10:1, 10%"]["known"]
    assert "drift x6" in capsys.readouterr().err


def test_embedders_are_timed_beside_each_other() -> None:
    """Each embedder has its median and its fastest decile."""
    spec = "tests.cache.test_evaluate:embed"
    figures = bench_embedding([spec], times=20)[spec]
    assert 0 < figures["p10_ms"] <= figures["p50_ms"]


def test_many_tenants_share_one_structure_and_no_answer() -> None:
    """A hundred tenants in one structure take at most a fifth more bytes per vector than one shared index, and each
    tenant's questions are answered from its own entries.
    """
    figures = bench_tenants(100, 100, 16, shared=5000)
    assert figures["entries"] == 10_000 and figures["crossed"] == 0
    assert figures["bytes_per_vector"] <= 1.2 * figures["shared_index_bytes_per_vector"]
    low, high = figures["search_ms_95"]
    assert low <= figures["search_ms"] <= high


def test_median_intervals_have_their_stated_coverage() -> None:
    """For a skewed distribution with a known median, about 95 % of samples have an interval that contains it."""
    draws = np.random.default_rng(0).lognormal(0.0, 1.0, (1000, 500))
    intervals = [median_interval(list(draw)) for draw in draws]
    assert 0.93 <= np.mean([low <= 1.0 <= high for low, high in intervals]) <= 0.97


def test_cells_find_the_nearest() -> None:
    """The index in cells finds the nearest vector nearly always."""
    figures = bench_index((6000,), 64)["6000 vectors"]
    assert figures["recall_at_1"] >= 0.96 and figures["as_near_within_001"] >= 0.98
