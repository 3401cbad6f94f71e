"""Decisions: searching them, explaining them in words, and replaying them."""

from __future__ import annotations

import time
from math import isnan
from typing import Annotated, Any

import msgspec
import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query

from gateway.admin.actor import Actor, may
from gateway.admin.changes import database
from gateway.admin.cursors import cursor_of, read_cursor
from gateway.admin.explaining import MEANINGS, summary_of
from gateway.admin.guard import Operator, Services, Viewer
from gateway.admin.rounds import cached
from gateway.admin.services import AdminServices
from gateway.admin.shapes.decisions import (
    Attempt,
    Candidate,
    DecisionPage,
    DecisionRow,
    Exclusion,
    Explained,
    FeedbackRow,
    Replayed,
    ReplaySide,
    ReplayWanted,
)
from gateway.errors import CallerError, NotFound
from gateway.journal import search as journal
from gateway.journal.lookup import find_decision
from gateway.journal.outcome import NAMES, flags_of, kept_attempt, named
from gateway.journal.record import AttemptRecord, DecisionRecord
from gateway.journal.rollup_tables import ALL_TENANTS, rollups
from gateway.journal.search import DecisionFilter
from gateway.journal.tables import spend
from gateway.journal.upsert import Row
from gateway.journal.view import decision_view
from gateway.money.prices import Price

router = APIRouter(prefix="/admin/decisions", tags=["decisions"])
FACETS_FRESH_S = 60.0
FACETS_S = 35 * 86400.0
Limit = Annotated[int, Query(ge=1, le=1000)]


def search(services: AdminServices, wanted: DecisionFilter, cursor: str = "", limit: int = 50) -> DecisionPage:
    """A page of the decisions that match the filter, newest first. `cursor` is `next` of the page before.

    Raises CallerError where the filter or the cursor is invalid.
    """
    if wanted.outcome not in ("", "ok", *NAMES):
        raise CallerError(f"outcome must be ok, {', '.join(NAMES)} or empty", param="outcome", status=422)
    for name in ("since_s", "until_s", "min_cost_usd", "max_cost_usd"):
        if isnan(getattr(wanted, name) or 0.0):
            raise CallerError(f"{name} is not a number", param=name, status=422)
    if wanted.since_s >= wanted.until_s:
        raise CallerError("since_s must be less than until_s", param="since_s", status=422)
    with database():
        found = journal.search(services.store, wanted, read_cursor(cursor), limit)
    following = cursor_of(*found.after) if found.after is not None else None
    return DecisionPage(
        data=[_row(row) for row in found.rows], next=following, searched_until_s=found.searched_until_s
    )


def explain(services: AdminServices, id: str, who: Actor) -> Explained:
    """Explain a decision, given the id of the decision, its response or its request. Raises NotFound.

    The decision may still be in a worker's spool. A viewer is not shown texts.
    """
    record, feedback = _find(services, id)
    view = decision_view(record)
    reads_text = may(who, "operator")
    if not reads_text:
        view.pop("prompt_text", None)
        view.pop("answer_text", None)
    plain = {name: view[name] for name in Explained.model_fields if name in view and name not in _OWN}
    return Explained(
        **plain,
        summary=summary_of(record, services.current),
        outcomes=named(flags_of(record)),
        candidates=candidates_of(record),
        excluded=[
            Exclusion(model=model, reason=why, meaning=MEANINGS.get(why.partition(":")[0], why))
            for model, why in record.excluded.items()
        ],
        attempts=attempts_of(record),
        feedback=feedback,
        counterfactual_usd=counterfactual(services, record),
        prompt_text=record.prompt_text if reads_text else "",
        answer_text=record.answer_text if reads_text else "",
        decision=view,
    )


_OWN = frozenset(
    {"candidates", "excluded", "attempts", "summary", "outcomes", "feedback", "prompt_text", "answer_text"}
)
"""Fields of `Explained` that `explain` fills in itself; the others are copied from the record's view."""


def replay(services: AdminServices, id: str, wanted: ReplayWanted) -> Replayed:
    """Decide a recorded request again, offline, with the route's router and knobs or with others.

    Raises NotFound, or CallerError where the record holds no router's choice or the router can't be opened.
    """
    from gateway.learn.policy import route_policy
    from gateway.redecide import choose_again, compared, notes_on, refuse_undecided
    from routers.types import Knobs

    record, _ = _find(services, id)
    refuse_undecided(record)
    try:
        with database():
            policy = route_policy(services.current, services.store, record.route, router=wanted.router)
    except (ValueError, OSError) as error:
        raise CallerError(f"the router can't be opened: {error}", param="router", status=422) from None
    changed = Knobs(
        cost_weight=wanted.cost_weight, min_quality=wanted.min_quality, max_cost_usd=wanted.max_cost_usd,
        max_latency_s=wanted.max_latency_s,
    )  # fmt: skip
    comparison = compared(record, choose_again(record, policy, changed), notes_on(record, policy.router, changed))
    sides: dict[str, Any] = {side: ReplaySide(**comparison[side]) for side in ("recorded", "replayed")}
    return Replayed.model_validate({**comparison, **sides})


def facets(services: AdminServices) -> dict[str, list[str]]:
    """Values that decisions can be filtered by: those of the last 35 days, at most a minute old."""
    return cached(services, "facets:", FACETS_FRESH_S, lambda: _facets(services))


def _facets(services: AdminServices) -> dict[str, list[str]]:
    since_s = int(time.time() - FACETS_S)
    day = (rollups.c.span_s == 86400, rollups.c.start_s >= since_s - 86400)
    wanted = {
        "route": sa.select(rollups.c.route).where(*day, rollups.c.tenant == ALL_TENANTS),
        "model": sa.select(rollups.c.model).where(*day, rollups.c.tenant == ALL_TENANTS),
        "tenant": sa.select(sa.func.substr(rollups.c.tenant, 2)).where(*day, rollups.c.tenant != ALL_TENANTS),
        "key_id": sa.select(spend.c.key_id).where(spend.c.hour_s >= since_s),
    }
    with database(), services.store.engine.connect() as connection:
        found = {name: connection.execute(query.distinct()).scalars().all() for name, query in wanted.items()}
    return {name: sorted(one for one in values if one) for name, values in found.items()}


def candidates_of(record: DecisionRecord) -> list[Candidate]:
    """The decision's candidates, most probable first."""
    rows = sorted(record.candidates, key=lambda one: -one.probability)
    return [
        Candidate(
            model=one.model, quality=one.quality, quality_sd=one.quality_sd, cost_usd=one.cost_usd,
            latency_s=one.latency_s, probability=one.probability, chosen=one.model == record.model,
            answered=one.model == record.answered_model,
        )
        for one in rows
    ]  # fmt: skip


def attempts_of(record: DecisionRecord) -> list[Attempt]:
    """The decision's attempts, in the order in which they were sent."""
    kept = kept_attempt(record)
    thresholds = dict(zip(record.plan, record.thresholds, strict=False))
    found = []
    for one in record.attempts:
        evidence = known_fields(one.evidence)
        found.append(
            Attempt(
                model=one.model, deployment=one.deployment, started_s=one.started_s, latency_s=one.latency_s,
                ttft_s=one.ttft_s, status=one.status, failure=one.failure, usage=one.usage,
                cost_usd=one.cost_nanousd / 1e9, estimated=one.estimated, gathered=one.gathered, evidence=evidence,
                confidence=one.evidence.confidence if one.evidence else None,
                threshold=thresholds.get(one.model), kept=one is kept,
            )
        )  # fmt: skip
    return found


def known_fields(value: Any) -> dict[str, Any] | None:
    """The fields of a struct that are not None; None where there is no struct."""
    if value is None:
        return None
    fields: dict[str, Any] = msgspec.to_builtins(value)
    return {name: one for name, one in fields.items() if one is not None}


def counterfactual(services: AdminServices, record: DecisionRecord) -> dict[str, float]:
    """Cost in US dollars by model: the answer's tokens at that model's prices, or, without an answer, the router's
    estimate.
    """
    kept = kept_attempt(record)
    expected = {one.model: one.cost_usd for one in record.candidates if one.cost_usd is not None}
    if kept is None:
        return expected
    prices = {model.name: Price.of(model) for model in reversed(services.current.models)}
    names = dict.fromkeys((*(one.model for one in record.candidates), *record.excluded, record.answered_model))
    return {name: _priced(prices[name], kept) for name in names if name in prices}


def _priced(price: Price, answer: AttemptRecord) -> float:
    """US dollars of this answer's usage, with its searches, units and tool runs, but without cache discounts, which are
    particular to the model that answered.
    """
    usage, (into, out) = answer.usage, answer.tokens
    per_unit = usage.get("web_search", 0) * price.web_search + usage.get("units", 0) * price.unit
    per_unit += price.tool_cost(usage)
    return (into * price.input + out * price.output) / 1e15 + per_unit / 1e9


def _find(services: AdminServices, id: str) -> tuple[DecisionRecord, list[FeedbackRow]]:
    with database():
        record = find_decision(lambda: services.store, services.spool_dir, id)
        if record is None:
            raise NotFound(f"no decision has the id {id!r}")
        return record, [FeedbackRow(**row) for row in services.store.feedback(decision_id=record.id)]


def _row(row: Row) -> DecisionRow:
    cost_usd, flags = row["cost_nanousd"] / 1e9, row["flags"]
    plain = {name: row[name] for name in DecisionRow.model_fields if name in row}
    return DecisionRow(**plain, cost_usd=cost_usd, outcomes=named(flags))


@router.get("")
def list_decisions(
    services: Services, who: Viewer, wanted: Annotated[DecisionFilter, Depends()], cursor: str = "", limit: Limit = 100
) -> DecisionPage:
    """List decisions, newest first; `cursor` is `next` of the page before."""
    return search(services, wanted, cursor, limit)


@router.get("/facets")
def get_facets(services: Services, who: Viewer) -> dict[str, list[str]]:
    """The values that decisions can be filtered by."""
    return facets(services)


@router.get("/{id}")
def get_decision(services: Services, who: Viewer, id: str) -> Explained:
    """One decision, by the id of the decision, response or request."""
    return explain(services, id, who)


@router.post("/{id}/replay")
def post_replay(services: Services, who: Operator, id: str, wanted: ReplayWanted) -> Replayed:
    """Decide a recorded request again, offline, with the same or another router or knob."""
    return replay(services, id, wanted)
