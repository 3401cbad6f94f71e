"""The overview: traffic, latency, spend and savings, computed from the rollups alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from math import sqrt
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from gateway.admin import changes
from gateway.admin.actor import Actor
from gateway.admin.changes import database
from gateway.admin.guard import Admin, Services, Viewer, is_known
from gateway.admin.rounds import cached, forget
from gateway.admin.savings import against, baseline_of, rate_of
from gateway.admin.services import AdminServices
from gateway.admin.shapes.common import Applied, Estimate, Interval, Refusal, SettingVersion, Wanted, Window
from gateway.admin.shapes.overview import Extra, Overview, Point, RandomSaving, Revision, Slice, Totals
from gateway.config.settings import stamp
from gateway.errors import CallerError
from gateway.journal.insights import insights_of
from gateway.journal.rollup_tables import COUNTS, LATENCY, TTFT
from gateway.journal.sums import Sums, merged, quantile_s, sums, sums_by_tenant

router = APIRouter(prefix="/admin", tags=["overview"])
BASELINE = "baseline"
FRESH_S = 1.0
"""How old a cached overview may be."""
BEHIND_BYTES = 4 * 1024 * 1024
"""Records that wait to be shipped, beyond which the journal counts as behind."""
LENGTH_S: dict[Window, int] = {"hour": 3600, "day": 86400, "week": 7 * 86400, "month": 30 * 86400}
STEP_S: dict[Window, int] = {"hour": 60, "day": 3600, "week": 3600, "month": 86400}
FINER_S: dict[Window, int] = {"day": 60, "month": 3600}
"""Step of the finer rollups that the unfinished last step is read from, by window; see `_before`."""
BLIND = (
    "The baseline chooses models at random, without looking at the query: for the cost saved, in the mixture of the "
    "same quality; for the quality gained, in the mixture of the same cost. The quality and cost of each model are "
    "estimated off-policy from the route's latest scored decisions."
)


class Baseline(Wanted):
    """The model to compute savings against; with an empty name, the most expensive model."""

    model: str
    version: int


def overview(services: AdminServices, window: Window = "day", route: str = "", tenant: str = "") -> Overview:
    """The overview of one route and tenant, or of all; at most a second old, because many pages may request it."""
    key = f"overview:{window}:{route}:{tenant}:{stamp(services.run_dir)}"
    return cached(services, key, FRESH_S, lambda: _overview(services, window, route, tenant))


def _overview(services: AdminServices, window: Window, route: str, tenant: str) -> Overview:
    step_s, now_s = STEP_S[window], time.time()
    until_s = (int(now_s) // step_s + 1) * step_s
    since_s = until_s - LENGTH_S[window]
    with database():
        filters = {"route": route, "tenant": tenant}
        by_route, by_model, by_start = (
            sums(services.store, step_s, since_s, until_s, by=(name,), **filters)
            for name in ("route", "model", "start_s")
        )
        before = _before(services, window, since_s, now_s, filters)
        by_tenant = [] if tenant else _tenants(services, step_s, since_s, until_s, route)
        declared = str((setting_value(services, BASELINE) or {}).get("model", ""))
        found = insights_of(services.store, "random")
    total = merged(by_model)
    state, detail = _journal(services)
    return Overview(
        window=window, since_s=since_s, until_s=until_s, step_s=step_s, route=route, tenant=tenant,
        empty=not total["requests"], totals=totals(total), before=totals(before), extra=_extra(total),
        baseline=against(services.current, declared, by_model), random=_random(found, by_route),
        series=_series(services, declared, by_start, since_s, until_s, step_s),
        by_route=_slices(by_route, "route"), by_model=_slices(by_model, "model"),
        by_tenant=_slices(by_tenant, "tenant"), alarms=len(raised(services)), journal=state, journal_detail=detail,
    )  # fmt: skip


def revision(services: AdminServices) -> Revision:
    """Numbers that change when a page may be out of date. Doesn't query the database."""
    return Revision(
        decisions=services.shipping.shipped, settings=stamp(services.run_dir), alarms=services.alarms,
        database="away" if services.shipping.fault or not services.opened else "ok", time_s=time.time(),
    )  # fmt: skip


def baseline_setting(services: AdminServices) -> SettingVersion:
    """The setting that names the baseline; version 0 where it was never set."""
    with database():
        return changes.setting(services, BASELINE)


def declare_baseline(services: AdminServices, who: Actor, model: str, version: int) -> Applied:
    """Set the model that savings are computed against; an empty name: the most expensive model.

    Raises Conflict, or CallerError where there is no such model.
    """
    if model and model not in {one.name for one in services.current.models}:
        raise CallerError(f"there is no model named {model!r}", param="model", status=422)
    done = changes.change(services, who, BASELINE, {"model": model} if model else None, version, checked=False)
    forget(services, "overview")
    return done


def totals(row: Sums) -> Totals:
    """Totals of one group of the rollups."""
    requests = row["requests"]
    hits = _hits(row)
    return Totals(
        requests=requests, errors=row["errors"], error_share=row["errors"] / max(requests, 1), cache_hits=hits,
        cache_share=hits / max(requests, 1), escalations=row["escalations"], explored=row["explored"],
        cost_usd=row["cost_nanousd"] / 1e9, cache_saved_usd=row["saved_nanousd"] / 1e9,
        input_tokens=row["input_tokens"], output_tokens=row["output_tokens"],
        latency_p50_s=quantile_s(row, 0.5), latency_p95_s=quantile_s(row, 0.95),
        ttft_p50_s=quantile_s(row, 0.5, TTFT), ttft_p95_s=quantile_s(row, 0.95, TTFT),
    )  # fmt: skip


def day_totals(services: AdminServices) -> dict[str, Totals]:
    """Totals of each route over the last 24 hours, by route; routes without a request are missing."""
    until_s = (int(time.time()) // 3600 + 1) * 3600
    names = (*COUNTS, *LATENCY, *TTFT)
    rows = sums(services.store, 3600, until_s - 86400, until_s, by=("route",), names=names)
    return {row["route"]: totals(row) for row in rows}


def no_totals() -> Totals:
    """Totals where there was no request."""
    return totals(merged([]))


def raised(services: AdminServices) -> list[dict[str, Any]]:
    """The alarms of all routes, as they were computed last."""
    with database():
        found = insights_of(services.store, "learning")
    routes = {route.name for route in services.current.routes}
    return [{**one, "time_s": at} for name, (at, state) in found.items() if name in routes for one in state["alarms"]]


def setting_value(services: AdminServices, name: str) -> Any:
    """The setting's value in force; None where nothing is set."""
    return services.store.setting(name)


def _before(services: AdminServices, window: Window, since_s: int, now_s: float, filters: Mapping[str, str]) -> Sums:
    """Sums of the window before, up to the moment that corresponds to now, so that the two can be compared.

    The last step of that stretch is not a whole one, so it is read from finer rollups where these are stored that long
    (FINER_S).
    """
    begun_s, now_then_s, step_s = since_s - LENGTH_S[window], now_s - LENGTH_S[window], STEP_S[window]
    names, finer_s = (*COUNTS, *LATENCY, *TTFT), FINER_S.get(window)
    if finer_s is None:
        return sums(services.store, step_s, begun_s, since_s, names=names, **filters)[0]
    whole_s = int(now_then_s) // step_s * step_s
    whole = sums(services.store, step_s, begun_s, whole_s, names=names, **filters)
    return merged(whole + sums(services.store, finer_s, whole_s, now_then_s, names=names, **filters))


def _tenants(services: AdminServices, step_s: int, since_s: float, until_s: float, route: str) -> list[Sums]:
    span_s = 86400 if step_s >= 3600 and until_s - since_s > 86400 else step_s
    names = (*COUNTS, *LATENCY)
    return sums_by_tenant(services.store, span_s, since_s // span_s * span_s, until_s, route=route, names=names)


def _journal(services: AdminServices) -> tuple[str, str]:
    if services.shipping.fault:
        return "away", services.shipping.fault
    if not services.opened:
        return "opening", "the database has not been reached yet"
    if services.shipping.waiting_bytes > BEHIND_BYTES:
        return "behind", f"{services.shipping.waiting_bytes / 1e6:.0f} MB of records wait to be shipped"
    return ("counting", "old decisions are still being added up") if services.counting else ("ok", "")


def _slices(rows: Sequence[Sums], name: str) -> list[Slice]:
    found = [
        Slice(
            name=row[name], requests=row["requests"], errors=row["errors"], cache_hits=_hits(row),
            cost_usd=row["cost_nanousd"] / 1e9, latency_p50_s=quantile_s(row, 0.5), latency_p95_s=quantile_s(row, 0.95),
        )
        for row in rows
        if row["requests"] or row["cost_nanousd"]
    ]  # fmt: skip
    return sorted(found, key=lambda one: (-one.cost_usd, -one.requests, one.name))


def _series(
    services: AdminServices, declared: str, rows: Sequence[Sums], since_s: int, until_s: int, step_s: int
) -> list[Point]:
    """Points for all steps of the window, also those without a request. `declared`: the declared baseline's name."""
    model = baseline_of(services.current, declared)
    by_start = {row["start_s"]: row for row in rows}
    nothing = merged([])
    found = []
    for start_s in range(since_s, until_s, step_s):
        row = by_start.get(start_s, nothing)
        rate = rate_of(model) if model is not None else None
        priced = rate.input * row["answer_input_tokens"] + rate.output * row["answer_output_tokens"] if rate else 0.0
        found.append(
            Point(
                time_s=start_s, requests=row["requests"], errors=row["errors"], cache_hits=_hits(row),
                cost_usd=row["cost_nanousd"] / 1e9, baseline_usd=(priced + row["saved_nanousd"]) / 1e9,
                latency_p50_s=quantile_s(row, 0.5), latency_p95_s=quantile_s(row, 0.95),
                ttft_p95_s=quantile_s(row, 0.95, TTFT),
            )
        )  # fmt: skip
    return found


def _extra(row: Sums) -> Extra:
    return Extra(
        judge_usd=row["judge_nanousd"] / 1e9, exploration_usd=row["exploration_nanousd"] / 1e9,
        cascade_usd=row["cascade_nanousd"] / 1e9,
    )  # fmt: skip


def _hits(row: Sums) -> int:
    return int(row["exact_hits"] + row["shared_hits"] + row["semantic_hits"])


def _random(found: dict[str, tuple[float, Any]], by_route: Sequence[Sums]) -> RandomSaving:
    """Savings against blind choice: the estimates per request of each route (`found`, by route, with their time), times
    the window's requests that a model answered.
    """
    known = [(row, *found[row["route"]]) for row in by_route if row["route"] in found and row["answers"]]
    estimated = [(row["answers"], row["cost_nanousd"] / 1e9, one) for row, _, one in known if _is_estimated(one)]
    rounds = sum(one["rounds"] for _, _, one in known)
    time_s = max((at for _, at, _ in known), default=None)
    if not estimated:
        why = next((one["refusal"] for _, _, one in known if one.get("refusal")), None)
        refusal = Refusal(**why) if why else Refusal(message="there was no request to a route of several models")
        nothing = Estimate(refusal=refusal)
        return RandomSaving(
            saved_usd=nothing, saved_share=nothing, quality_gain=nothing, rounds=rounds, basis=BLIND, time_s=time_s
        )
    saved = _sum([(answers, one["saved_usd"]) for answers, _, one in estimated])
    spent = sum(cost for _, cost, _ in estimated)
    base = saved.value + spent
    share = None if base <= 0 else Interval(value=saved.value / base, low=saved.low / base, high=saved.high / base)
    answers = sum(answers for answers, _, _ in estimated)
    gain = _sum([(count / answers, one["quality_gain"]) for count, _, one in estimated])
    return RandomSaving(
        saved_usd=Estimate(interval=saved),
        saved_share=Estimate(interval=share) if share else Estimate(refusal=Refusal(message="nothing was spent")),
        quality_gain=Estimate(interval=gain), rounds=rounds, basis=BLIND, time_s=time_s,
    )  # fmt: skip


def _is_estimated(one: dict[str, Any]) -> bool:
    """Whether a route's savings were estimated; a figure that could not be computed is stored as null."""
    if one.get("refusal"):
        return False
    return all(value is not None for name in ("saved_usd", "quality_gain") for value in one[name].values())


def _sum(parts: Sequence[tuple[float, dict[str, float]]]) -> Interval:
    """Weighted sum of independent figures, with its interval."""
    value = sum(weight * one["value"] for weight, one in parts)
    below = sqrt(sum((weight * (one["value"] - one["low"])) ** 2 for weight, one in parts))
    above = sqrt(sum((weight * (one["high"] - one["value"])) ** 2 for weight, one in parts))
    return Interval(value=value, low=value - below, high=value + above)


@router.get("/overview")
def get_overview(
    services: Services, who: Viewer, window: Window = "day", route: str = "", tenant: str = ""
) -> Overview:
    """Traffic, speed, spend and savings in a time window."""
    return overview(services, window, route, tenant)


@router.get("/revision")
def get_revision(services: Services, who: Viewer) -> Revision:
    """Numbers that change when a page may be out of date."""
    return revision(services)


@router.get("/baseline")
def get_baseline(services: Services, who: Viewer) -> SettingVersion:
    """The model that savings are computed against."""
    return baseline_setting(services)


@router.put("/baseline")
def put_baseline(services: Services, who: Admin, wanted: Baseline) -> Applied:
    """Set the model that savings are computed against."""
    return declare_baseline(services, who, wanted.model, wanted.version)


@router.get("/live", response_class=StreamingResponse)
async def live(services: Services, who: Viewer, request: Request) -> StreamingResponse:
    """Server-sent events `revision`: one at once, then one per change, at most one a second, until the session ends."""
    events = _revisions(services, request)
    return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _revisions(services: AdminServices, request: Request) -> AsyncIterator[bytes]:
    before: dict[str, Any] = {}
    quiet_s = 0
    while not services.closing and await run_in_threadpool(is_known, request):
        now = revision(services).model_dump(exclude={"time_s"})
        if now != before:
            before, quiet_s = now, 0
            yield b"event: revision\ndata: " + msgspec.json.encode(now) + b"\n\n"
        elif quiet_s >= 15:
            quiet_s = 0
            yield b": still here\n\n"
        await asyncio.sleep(1.0)
        quiet_s += 1
