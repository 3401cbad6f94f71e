"""Whether a turned knob did what was foretold: the prediction is kept with the turn, and laid beside what came since.

What came is plain means of the route's latest decisions since the turn. Other things move them too, other questions
or another router, so this says that a prediction held or did not, never why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import hypot
from typing import Any

import numpy as np

from gateway.admin.preview import preview
from gateway.admin.rounds import KNOBS, latest_log
from gateway.admin.services import AdminServices
from gateway.admin.shapes.common import Estimate, Interval, Refusal, SettingVersion
from gateway.admin.shapes.knobs import Held, Kept, Knobs
from gateway.errors import HeadgateError
from gateway.learn.dataset import Log, NothingLogged
from routers.intervals import mean_interval
from routers.ope import Array

LEAST = 30
"""Decisions before a mean is told."""
FIGURES = {"quality": "score", "cost_usd": "cost_usd", "latency_s": "latency_s"}


def foretell(services: AdminServices, route: str, knobs: Knobs) -> dict[str, Any] | None:
    """What a turn of the knobs is to bring, to be kept with it; None where nothing can be said of them, or not all:
    what a daily budget leaves out is not predicted.
    """
    if knobs.budget_usd_per_day is not None:
        return None
    try:
        told = preview(services, route, knobs)
    except HeadgateError:
        return None
    figures = {name: getattr(told, name) for name in FIGURES}
    known = {name: one.then.interval.model_dump() for name, one in figures.items() if one.then.interval}
    return {"knobs": told.knobs.model_dump(), **known} if known else None


def kept_word(services: AdminServices, route: str, in_force: Knobs, history: Sequence[SettingVersion]) -> Kept | None:
    """None where nothing was foretold of the knobs in force. `history`: newest first."""
    told: Mapping[str, Any] = ((history[0].value or {}) if history else {}).get("foretold") or {}
    if told.get("knobs") != in_force.model_dump():
        return None
    since_s = _since(history)
    try:
        log = latest_log(services, route)
        came = log.rows(np.array([record.time_s >= since_s for record in log.records], bool))
    except NothingLogged:
        came = None
    return Kept(since_s=since_s, rounds=len(came) if came is not None else 0, **{
        name: _held(Interval(**told[name]), came, field) for name, field in FIGURES.items() if name in told
    })  # fmt: skip


def _since(history: Sequence[SettingVersion]) -> float:
    """When the knobs became what they are: later versions may have changed a trial alone."""
    stated = [{name: (one.value or {}).get(name) for name in KNOBS} for one in history]
    return next(
        (after.time_s for after, before in zip(history, stated[1:], strict=False) if before != stated[0]),
        history[-1].time_s,
    )


def _held(foretold: Interval, came: Log | None, field: str) -> Held:
    seen = mean(getattr(came, field) if came is not None else np.zeros(0))
    return Held(foretold=foretold, seen=seen, held=agree(foretold, seen.interval) if seen.interval else None)


def mean(values: Array) -> Estimate:
    """With its 95 % interval; a refusal while there are too few."""
    known = values[np.isfinite(values)]
    if len(known) < LEAST:
        lacking = LEAST - len(known)
        return Estimate(refusal=Refusal(message=f"about {lacking} more decisions", calls=lacking))
    return Estimate(interval=Interval(**mean_interval(known).as_dict()))


def agree(one: Interval, other: Interval) -> bool:
    """Whether two independent figures differ by no more than 95 % of the time by chance."""
    low, high = sorted((one, other), key=lambda figure: figure.value)
    return high.value - low.value <= hypot(low.high - low.value, high.value - high.low) + 1e-12
