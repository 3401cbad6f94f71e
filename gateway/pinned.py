"""Choices that need no router (a pinned model, a route's default model), and the merging of a route's and a request's
knobs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace

import numpy as np

from gateway.errors import CallerError
from gateway.routes import Model, Route
from gateway.wire.request import Described
from routers.eligible import over
from routers.simple import TOO_EXPENSIVE, too_expensive
from routers.types import Candidate, Choice, Knobs, Query, Undecided

NO_VECTOR = np.zeros(0, np.float32)
UNHEALTHY = "unhealthy"


def pinned(model: str, reason: str, excluded: Mapping[str, str] | None = None) -> Choice:
    """A choice of this model with probability 1."""
    return Choice(model, 1.0, {model: 1.0}, (), excluded or {}, reason, "pinned@1", (model,))


def listed(route: Route, worst: Mapping[str, int], knobs: Knobs) -> Choice:
    """For a request that routers can't read: the route's first model, and then the others in case it fails. `worst` has
    the most nano-dollars that each model can cost. Raises CallerError if the request's own cap on cost excludes all.
    """
    cap = knobs.max_cost_usd
    names = [name for name in route.names if cap is None or worst[name] <= cap * 1e9]
    if not names:
        raise CallerError(f"'{route.name}' may not answer this request: {TOO_EXPENSIVE}", code="no_eligible_model")
    return replace(pinned(names[0], "pinned" if route.router is None else "listed"), ranked=tuple(names))


def breaks(query: Query, candidate: Candidate, knobs: Knobs) -> str:
    """The bound on money or time that this model would break; empty where it breaks none."""
    return over(query, candidate, knobs) or (TOO_EXPENSIVE if too_expensive(query, candidate, knobs) else "")


def bounded(route: Route, candidate: Candidate, described: Described, knobs: Knobs) -> Choice:
    """The pinned model. Raises CallerError if it would break a bound that the request itself states."""
    if reason := breaks(bare_query(described), candidate, knobs):
        raise CallerError(f"'{route.name}' may not answer this request: {reason}", code="no_eligible_model")
    return pinned(route.default_model, "pinned")


def within_cap(route: Route, models: Mapping[str, Model], described: Described, knobs: Knobs) -> Route:
    """The route without the fallbacks that would break the request's own cap on its cost."""
    query, cap = bare_query(described), Knobs(max_cost_usd=knobs.max_cost_usd)
    kept = tuple(name for name in route.fallbacks if not breaks(query, models[name].candidate_at(described.tier), cap))
    return route if kept == route.fallbacks else replace(route, fallbacks=kept)


def default_choice(route: Route, undecided: Undecided, healthy: Callable[[str], bool]) -> Choice:
    """The route's default model, for a request that the router can't decide; a fallback while that model is unhealthy.
    Raises CallerError if the request itself excludes every model by its cap, its size or the abilities it needs.
    """
    excluded = undecided.excluded
    if excluded.get(route.default_model, UNHEALTHY) != UNHEALTHY:
        reasons = "; ".join(f"{model}: {reason}" for model, reason in excluded.items())
        message = f"no model of route '{route.name}' may answer this request ({reasons})"
        raise CallerError(message, code="no_eligible_model")
    first = route.default_model
    if first in excluded and route.promise is None and route.cascade is None:
        first = next((model for model in route.fallbacks if healthy(model)), first)
    choice = pinned(first, f"default: {undecided.reason}", excluded)
    return choice if first == route.default_model else replace(choice, ranked=(first, route.default_model))


def bare_query(described: Described) -> Query:
    """The query without a vector, for routers that need none."""
    return Query(
        text=described.text,
        vector=NO_VECTOR,
        features_version="",
        input_tokens=described.input_tokens,
        max_output_tokens=described.max_output_tokens,
        turns=described.turns,
        tools=described.tools,
        images=described.images,
        wants_json=described.wants_json,
        web_searches=described.web_searches,
        tool_runs=tuple(described.tool_runs.items()),
    )


def merge(route: Knobs, request: Knobs) -> Knobs:
    """The route's knobs, overridden by those that the request states."""
    stated = {
        field.name: value
        for field in fields(Knobs)
        if field.name != "explore" and (value := getattr(request, field.name)) is not None
    }
    return Knobs(**{**{field.name: getattr(route, field.name) for field in fields(Knobs)}, **stated})
