from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.admin.actor import Actor
from gateway.admin.changes import Conflict
from gateway.admin.overview import declare_baseline, overview
from gateway.admin.savings import against
from gateway.admin.services import AdminServices
from gateway.admin.upkeep import Seen, blind_savings, check_up
from gateway.config.types import Config, ModelConfig
from gateway.errors import CallerError
from gateway.journal.record import CandidateRecord, DecisionRecord
from gateway.journal.rollup import rollup_rows
from gateway.journal.rollup_tables import ADDED, LATENCY, bucket
from gateway.journal.sums import quantile_s
from gateway.learn.dataset import log_of
from tests.gateway.admin.traffic import COST, explored, recent, write
from tests.gateway.journal.records import attempt, decision

ADMIN = Actor("ann", "admin")


def test_an_empty_journal_has_empty_figures(admin: AdminServices) -> None:
    """Without requests there is no error: counts are 0, and figures are refused with a reason."""
    told = overview(admin, "week")
    assert told.empty and told.totals.requests == 0 and told.totals.latency_p50_s is None
    assert told.baseline.refusal == "there was no request in this time"
    assert told.random.saved_usd.refusal is not None
    assert len(told.series) == 7 * 24


@pytest.mark.parametrize("window", ["hour", "day", "week", "month"])
def test_the_figures_are_those_of_the_decisions(admin: AdminServices, window: Any) -> None:
    """Counts, spend and shares add up at every resolution, and the series has every step."""
    write(admin, *(recent(n, ttft_s=0.05) for n in range(1, 31)), recent(31, status=500, answered_model=""),
          recent(32, cache="hit", attempts=(), cost_nanousd=0, saved_nanousd=900))  # fmt: skip
    told = overview(admin, window)
    assert (told.totals.requests, told.totals.errors, told.totals.cache_hits) == (32, 1, 1)
    assert told.totals.cost_usd == pytest.approx(31 * 1e-6)
    assert told.totals.latency_p50_s == pytest.approx(0.2, rel=0.3)
    assert sum(point.requests for point in told.series) == 32
    assert sum(one.cost_usd for one in told.by_model) == pytest.approx(told.totals.cost_usd)
    assert [one.name for one in told.by_tenant] == ["acme"]


@pytest.mark.parametrize(("window", "length_s", "grain_s"), [("day", 86400, 60), ("month", 30 * 86400, 3600)])
def test_the_previous_window_ends_at_the_same_time_of_day(
    admin: AdminServices, monkeypatch: pytest.MonkeyPatch, window: Any, length_s: int, grain_s: int
) -> None:
    """Constant traffic shows no fall, because half a day isn't compared with a whole one."""
    now_s = time.time() // 86400 * 86400 + 43200 + 1800
    monkeypatch.setattr("gateway.admin.overview.time", SimpleNamespace(time=lambda: now_s))
    ago = [7, length_s - 2 * grain_s, length_s + grain_s, length_s + 2 * grain_s]
    write(admin, *(decision(n, time_s=now_s - past_s) for n, past_s in enumerate(ago)))
    told = overview(admin, window)
    assert told.before.requests == 2


def test_one_route_or_tenant_alone(admin: AdminServices) -> None:
    """Filters leave out other routes and tenants."""
    write(admin, recent(1), recent(2, route="code", tenant="other"))
    assert overview(admin, "day", route="code").totals.requests == 1
    assert overview(admin, "day", tenant="acme").totals.requests == 1
    assert overview(admin, "day", tenant="acm").totals.requests == 0


def test_savings_are_the_baseline_minus_all_that_was_spent(admin: AdminServices) -> None:
    """Computed by hand: the answers' tokens at the baseline's prices, minus every attempt, audit and failure."""
    write(
        admin,
        recent(1),
        recent(2, plan=("small", "large"), answered_model="large", cost_nanousd=10_000,
               attempts=(attempt("small"), attempt("large", cost_nanousd=9000))),
        recent(3, key_id="audit", cost_nanousd=700),
        recent(4, status=502, answered_model="", attempts=(attempt("small", failure="reset"),)),
    )  # fmt: skip
    told = overview(admin, "hour").baseline
    per_answer = (12 * 2.0 + 5 * 8.0) / 1e6
    spent = (1000 + 10_000 + 700 + 1000) / 1e9
    assert told.model == "large" and not told.declared
    assert told.baseline_usd is not None and told.saved_usd is not None
    assert told.baseline_usd.value == pytest.approx(2 * per_answer)
    assert told.saved_usd.value == pytest.approx(2 * per_answer - spent)
    assert told.saved_usd.low < told.saved_usd.value < told.saved_usd.high
    extra = overview(admin, "hour").extra
    assert (extra.judge_usd, extra.cascade_usd) == pytest.approx((700e-9, 2000e-9))


def test_a_baseline_is_changed_by_one_operator_at_a_time(admin: AdminServices) -> None:
    """Another model changes the figure; an unknown model and an outdated version are refused."""
    write(admin, recent(1))
    declare_baseline(admin, ADMIN, "small", 0)
    told = overview(admin, "hour").baseline
    assert told.declared and told.model == "small"
    with pytest.raises(Conflict):
        declare_baseline(admin, ADMIN, "large", 0)
    with pytest.raises(CallerError, match="no model"):
        declare_baseline(admin, ADMIN, "huge", 1)


amounts = st.tuples(st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 10**7))


@settings(deadline=None, max_examples=30)
@given(st.lists(amounts, min_size=2, max_size=40))
def test_the_interval_is_that_of_a_sum_of_differences(asked: list[tuple[int, int, int]]) -> None:
    """The interval from sums of products equals the one from each request's own difference."""
    config = Config(models=[ModelConfig(name="big", provider="p", input_usd_per_mtok=2.0, output_usd_per_mtok=8.0)])
    records = [one_of(number, *amount) for number, amount in enumerate(asked)]
    rows = [row for row in rollup_rows(records) if row["span_s"] == 86400 and row["tenant"] == ""]
    total = {name: sum(row[name] for row in rows) for name in ADDED}
    told = against(config, "big", [{"model": "big", **total}])
    differences = [into * 2000 + out * 8000 - cost for into, out, cost in asked]
    n, mean = len(asked), sum(differences) / len(asked)
    sd = (sum((one - mean) ** 2 for one in differences) / (n - 1)) ** 0.5
    assert told.saved_usd is not None
    assert told.saved_usd.value == pytest.approx(sum(differences) / 1e9, abs=1e-12)
    reach = (told.saved_usd.high - told.saved_usd.low) / 2
    assert reach == pytest.approx(1.96 * sd * n**0.5 / 1e9, rel=1e-4, abs=1e-9)


def one_of(number: int, into: int, out: int, cost: int) -> DecisionRecord:
    usage = {"input": into, "output": out}
    return decision(number, answered_model="big", model="big", plan=("big",), cost_nanousd=cost,
                    attempts=(attempt("big", usage=usage, cost_nanousd=cost),))  # fmt: skip


def test_embeddings_and_pictures_have_no_savings(admin: AdminServices) -> None:
    """No chat model could have answered them, so they count neither as savings nor as losses."""
    write(admin, *(recent(n) for n in range(1, 31)))
    before = overview(admin, "day")
    write(admin, *(recent(100 + n, surface=surface, route=model, answered_model=model, attempts=(attempt(model),),
                         cost_nanousd=5_000_000)
                  for n, (surface, model) in enumerate([("embeddings", "vectors"), ("images", "brush")])))  # fmt: skip
    admin.results.clear()
    after = overview(admin, "day")
    assert after.baseline == before.baseline and after.totals.cost_usd > before.totals.cost_usd


def test_savings_against_chance_need_exploration(admin: AdminServices) -> None:
    """A route whose router chooses blindly saves nothing beyond chance: the interval contains zero. Without enough
    exploration there is a refusal.
    """
    write(admin, *explored(20))
    check_up(admin, "auto", Seen())
    few = overview(admin, "hour").random
    assert few.saved_usd.refusal is not None and "of the 50 needed" in few.saved_usd.refusal.message
    write(admin, *explored(600, seed=1))
    check_up(admin, "auto", Seen())
    admin.results.clear()
    told = overview(admin, "hour").random
    assert told.saved_usd.interval is not None and told.quality_gain.interval is not None
    assert told.saved_usd.interval.low <= 0.0 <= told.saved_usd.interval.high
    assert told.quality_gain.interval.low <= 0.0 <= told.quality_gain.interval.high
    assert told.rounds >= 600


def test_routing_by_the_query_beats_chance() -> None:
    """Hard questions go to the large model, so a random mixture of the same quality costs more."""
    told = blind_savings(log_of([knowing(number) for number in range(600)]))
    assert told["saved_usd"]["low"] > 0.0 and told["quality_gain"]["low"] > 0.0


def knowing(number: int) -> tuple[DecisionRecord, float]:
    """Hard questions go to the large model nine times in ten, easy ones to the small model; the small model fails on
    hard ones.
    """
    hard, other = number % 2 == 0, number % 10 >= 8
    model = "large" if hard != other else "small"
    candidates = tuple(
        CandidateRecord(model=one, cost_usd=COST[one] / 1e9, probability=0.8 if (one == "large") == hard else 0.2)
        for one in ("small", "large")
    )
    record = decision(
        number, id=f"dec_{number}", model=model, answered_model=model, candidates=candidates, propensity=0.5,
        prompt_text="prove this theorem" if hard else "say hello", cost_nanousd=COST[model],
    )  # fmt: skip
    return record, 1.0 if model == "large" or not hard else 0.0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.005, 90.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.95]))
def test_a_quantile_is_accurate_to_its_bucket(latencies: list[float], share: float) -> None:
    """It is within a factor of 1.5, the width of the buckets."""
    row = dict.fromkeys(LATENCY, 0)
    for one in latencies:
        row[LATENCY[bucket(one)]] += 1
    wanted = sorted(latencies)[max(0, -(-int(share * len(latencies) * 1000) // 1000) - 1)]
    found = quantile_s(row, share)
    assert found is not None
    assert wanted / 1.6 <= found <= wanted * 1.6 or bucket(found) in (bucket(wanted), bucket(wanted) + 1)


async def test_a_stream_announces_changes_and_ends_with_the_process(
    admin: AdminServices, client: httpx.AsyncClient
) -> None:
    """The first event is sent at once; a process that ends closes the stream."""
    admin.shipping.shipped = 7
    admin.closing = False
    async with client.stream("GET", "/admin/revision") as answer:
        told = (await answer.aread()).decode()
    assert '"decisions":7' in told
    admin.closing = True
    assert (await client.get("/admin/live")).text == ""


async def test_a_database_that_is_away_is_an_error_of_its_own(
    admin: AdminServices, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    """Requests that need the database get 503 with a code; health and revision still work."""
    admin.store.engine.dispose()
    file = Path(str(admin.config.storage.url).removeprefix("sqlite:///"))
    file.unlink()
    file.mkdir()
    admin.login_guard.users = (0, time.monotonic())
    for method, path in (("GET", "/admin/overview"), ("PUT", "/admin/routes/auto/knobs"), ("GET", "/admin/fleet")):
        answer = await client.request(method, path, json={"knobs": {"cost_weight": 0.9}, "version": 0})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "journal_unavailable"), path
    assert (await client.get("/admin/revision")).status_code == 200
    assert (await client.get("/healthz")).status_code == 200
