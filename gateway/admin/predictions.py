"""Compares the predicted effect of changed knobs, which is stored with the change, with what was observed since.

What was observed are plain means of the route's latest decisions since the change. Other causes move them too, such as
other queries or another router, so the comparison says whether a prediction held, but never why.
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
"""Fewest decisions for which a mean is reported."""
FIGURES = {"quality": "score", "cost_usd": "cost_usd", "latency_s": "latency_s"}


def predict(services: AdminServices, route: str, knobs: Knobs) -> dict[str, Any] | None:
    """The predicted figures of changed knobs, to be stored with the change. None where nothing can be predicted, or a
    daily budget is set, whose effect can't be predicted.
    """
    if knobs.budget_usd_per_day is not None:
        return None
    try:
        effect = preview(services, route, knobs)
    except HeadgateError:
        return None
    figures = {name: getattr(effect, name) for name in FIGURES}
    known = {name: one.then.interval.model_dump() for name, one in figures.items() if one.then.interval}
    return {"knobs": effect.knobs.model_dump(), **known} if known else None


def prediction_outcome(
    services: AdminServices, route: str, in_force: Knobs, history: Sequence[SettingVersion]
) -> Kept | None:
    """The prediction for the knobs in force, beside what was observed since; None where there is no prediction.

    `history`: versions of the route's setting, newest first.
    """
    prediction: Mapping[str, Any] = ((history[0].value or {}) if history else {}).get("foretold") or {}
    if prediction.get("knobs") != in_force.model_dump():
        return None
    since_s = _since(history)
    try:
        log = latest_log(services, route)
        observed = log.rows(np.array([record.time_s >= since_s for record in log.records], bool))
    except NothingLogged:
        observed = None
    return Kept(since_s=since_s, rounds=len(observed) if observed is not None else 0, **{
        name: _held(Interval(**prediction[name]), observed, field)
        for name, field in FIGURES.items() if name in prediction
    })  # fmt: skip


def _since(history: Sequence[SettingVersion]) -> float:
    """When the knobs in force were set, in Unix seconds: later versions of the setting may change just a trial."""
    stated = [{name: (one.value or {}).get(name) for name in KNOBS} for one in history]
    return next(
        (after.time_s for after, before in zip(history, stated[1:], strict=False) if before != stated[0]),
        history[-1].time_s,
    )


def _held(predicted: Interval, observed: Log | None, field: str) -> Held:
    seen = mean(getattr(observed, field) if observed is not None else np.zeros(0))
    return Held(foretold=predicted, seen=seen, held=agree(predicted, seen.interval) if seen.interval else None)


def mean(values: Array) -> Estimate:
    """Mean of the finite values with its 95 % interval; a refusal where there are fewer than LEAST."""
    known = values[np.isfinite(values)]
    if len(known) < LEAST:
        missing = LEAST - len(known)
        return Estimate(refusal=Refusal(message=f"about {missing} more decisions are needed", calls=missing))
    return Estimate(interval=Interval(**mean_interval(known).as_dict()))


def agree(one: Interval, other: Interval) -> bool:
    """Whether the 95 % interval of the difference of two independent figures contains 0."""
    low, high = sorted((one, other), key=lambda figure: figure.value)
    return high.value - low.value <= hypot(low.high - low.value, high.value - high.low) + 1e-12
