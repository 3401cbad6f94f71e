"""Predicts the effect of knobs from the route's latest decisions, or says what evidence is missing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from gateway.admin.changes import database
from gateway.admin.rounds import KNOBS, LOG_S, cached, latest_log, policy_of, route_of
from gateway.admin.services import AdminServices
from gateway.admin.shapes.common import Estimate, Interval, Refusal
from gateway.admin.shapes.knobs import Effect, Knobs, Preview
from gateway.errors import CallerError
from gateway.journal.sums import sums
from gateway.learn.dataset import NothingLogged
from gateway.learn.threshold import at_threshold
from gateway.learn.whatif import Answer, Figure, what_if
from routers import intervals, ope
from routers.types import Undecided

BUDGET = "the effect of a daily budget depends on the order of the day's requests, so it is not predicted"


def preview(services: AdminServices, route: str, knobs: Knobs) -> Preview:
    """The predicted effect of these knobs, which are not put into force. Raises NotFound or CallerError."""
    stated = route_of(services, route)
    wanted = knobs.model_dump(exclude_unset=True)
    changed = {name: value for name, value in wanted.items() if value != getattr(stated, name)}
    in_force = {name: getattr(stated, name) for name in Knobs.model_fields}
    knobs = Knobs(**(in_force | wanted))
    key = f"preview:{route}:{in_force!r}:{sorted(changed.items())!r}"
    return cached(services, key, LOG_S, lambda: _preview(services, route, knobs, changed))


def _preview(services: AdminServices, route: str, knobs: Knobs, changed: Mapping[str, float | None]) -> Preview:
    with database():
        per_day = requests_per_day(services, route)
        try:
            answer = evaluate(services, route, changed)
        except NothingLogged as none:
            return _nothing(route, knobs, per_day, f"Not enough evidence: {none}.")
    quality, cost, latency = (_effect(answer, name) for name in ("quality", "cost_usd", "latency_s"))
    return Preview(
        route=route, knobs=knobs, rounds=answer.rounds, labelled=answer.labelled, effective=answer.effective,
        quality=quality, cost_usd=cost, latency_s=latency, requests_per_day=per_day, day_usd=_times(cost, per_day),
        shares_now=dict(answer.now_shares), shares_then=dict(answer.then_shares),
        passed_over=answer.passed_over, notes=list(answer.notes), message=_message(changed, quality, cost, answer),
    )  # fmt: skip


def evaluate(services: AdminServices, route: str, changed: Mapping[str, float | None]) -> Answer:
    """Off-policy evaluation of the changed knobs. Raises NothingLogged or CallerError."""
    log = latest_log(services, route)
    if "accept_at" in changed:
        if set(changed) - {"accept_at", "budget_usd_per_day"}:
            raise CallerError(
                "accept_at can only be previewed alone: other knobs change the first model, whose answers it judges",
                param="accept_at", status=422,
            )  # fmt: skip
        return at_threshold(log, changed["accept_at"] if changed["accept_at"] is not None else 0.5)
    try:
        return what_if(log, policy_of(services, route, {n: v for n, v in changed.items() if n in KNOBS}))
    except NothingLogged:
        raise
    except (ValueError, Undecided) as fault:
        raise CallerError(f"this can't be predicted: {fault}", status=422) from None


def requests_per_day(services: AdminServices, route: str) -> float:
    """Requests per day that a model answered, over the last seven days, or since the route's first request."""
    until_s = (int(time.time()) // 3600 + 1) * 3600
    rows = sums(
        services.store, 3600, until_s - 7 * 86400, until_s, by=("start_s",), route=route, names=("answers",)
    )
    if not rows:
        return 0.0
    days = max(1 / 24, (until_s - min(row["start_s"] for row in rows)) / 86400)
    return float(sum(int(row["answers"]) for row in rows) / days)


def interval(one: intervals.Interval) -> Interval:
    """An estimator's interval in the shape of the admin API."""
    return Interval(**one.as_dict())


def refusal(one: ope.Refusal) -> Refusal:
    """An estimator's refusal in the shape of the admin API."""
    cost_usd = one.cost_usd if one.cost_usd == one.cost_usd else None
    return Refusal(message=str(one), explored_calls=one.explored_calls, calls=one.calls, cost_usd=cost_usd,
                   exploration=one.exploration or None)  # fmt: skip


def _effect(answer: Answer, name: str) -> Effect:
    figure: Figure | None = answer.figures.get(name)
    if figure is not None:
        return Effect(
            now=Estimate(interval=interval(figure.now)), then=Estimate(interval=interval(figure.then)),
            difference=Estimate(interval=interval(figure.difference)),
        )  # fmt: skip
    found = answer.refusals.get(name)
    why = refusal(found) if found is not None else Refusal(
        message="no answer has been scored: send feedback, or label some answers"
    )  # fmt: skip
    nothing = Estimate(refusal=why)
    return Effect(now=nothing, then=nothing, difference=nothing)


def _times(effect: Effect, factor: float) -> Effect:
    def scaled(one: Estimate) -> Estimate:
        if one.interval is None:
            return one
        return Estimate(interval=Interval(**{k: v * factor for k, v in one.interval.model_dump().items()}))

    return Effect(now=scaled(effect.now), then=scaled(effect.then), difference=scaled(effect.difference))


def _nothing(route: str, knobs: Knobs, per_day: float, why: str) -> Preview:
    nothing = Estimate(refusal=Refusal(message=why))
    effect = Effect(now=nothing, then=nothing, difference=nothing)
    return Preview(
        route=route, knobs=knobs, rounds=0, labelled=0, effective=0.0, quality=effect, cost_usd=effect,
        latency_s=effect, requests_per_day=per_day, day_usd=effect, shares_now={}, shares_then={}, message=why,
    )  # fmt: skip


def _message(changed: Mapping[str, Any], quality: Effect, cost: Effect, answer: Answer) -> str:
    if not changed:
        return "These are the knobs in force."
    sentences = [_sentence("Cost", cost), _sentence("Quality", quality)]
    if "budget_usd_per_day" in changed:
        sentences.append(f"Budget: {BUDGET}.")
    moved = sum(abs(share - answer.now_shares.get(model, 0.0)) for model, share in answer.then_shares.items()) / 2
    sentences.append(f"{100 * moved:.0f} % of the requests would go to another model.")
    return " ".join(sentences)


def _sentence(what: str, effect: Effect) -> str:
    gap, now = effect.difference.interval, effect.now.interval
    if gap is None or now is None:
        why = effect.difference.refusal
        return f"{what}: {why.message if why else 'unknown'}."
    if what == "Cost" and now.value > 0:
        parts = [100.0 * one / now.value for one in (gap.value, gap.low, gap.high)]
        return f"{what} per request changes by {parts[0]:+.0f} % (95 % interval: {parts[1]:+.0f} to {parts[2]:+.0f} %)."
    parts = [100.0 * one for one in (gap.value, gap.low, gap.high)]
    return f"{what} changes by {parts[0]:+.1f} points of 100 (95 % interval: {parts[1]:+.1f} to {parts[2]:+.1f})."
