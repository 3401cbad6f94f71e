"""Makes a recorded decision again, offline.

The journal has the query's features and vector, the candidates, the request's own knobs and the router's random draw.
Prices, abilities and the route's knobs are not in it and are taken from the current configuration. The vector is stored
in half precision, so estimates agree to about three digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from gateway.errors import CallerError
from gateway.journal.record import CandidateRecord, DecisionRecord
from gateway.journal.vectors import unpacked
from gateway.learn.whatif import Policy
from gateway.pinned import NO_VECTOR, UNHEALTHY, merge, pinned
from gateway.settle import candidates_of
from routers.types import Candidate, Choice, Knobs, Query, Router, Undecided, Vector

SAME_WITHIN = 0.005
"""Probabilities and qualities that differ by at most this count as equal, since the vector is rounded."""


def refuse_undecided(record: DecisionRecord) -> None:
    """Raise CallerError for a decision that no router made."""
    if not record.model:
        how = f"answered by the cache ({record.cache})" if record.from_cache else f"refused ({record.error})"
        raise CallerError(f"nothing to decide again: {record.id} was {how} before a router was asked")
    if record.reason == "pinned":
        raise CallerError(f"nothing to decide again: {record.id} named the model '{record.model}' itself")


def choose_again(record: DecisionRecord, policy: Policy, changed: Knobs) -> Choice:
    """The policy's choice for the recorded query with the recorded draw; the route's default model where the policy
    can't decide.
    """
    stated: Any = record.knobs
    knobs = merge(merge(policy.knobs, Knobs(**stated)), changed)
    if not record.explore:
        knobs = replace(knobs, explore=False)
    try:
        return policy.router.choose(
            query_of(record, policy.router), candidates_then(record, policy.candidates), knobs, draw_of(record)
        )
    except Undecided as undecided:
        default = policy.default_model or record.model
        return pinned(default, f"default: {undecided.reason}", undecided.excluded)


def query_of(record: DecisionRecord, router: Router) -> Query:
    return Query(
        text=record.prompt_text,
        vector=vector_of(record, router.features_version),
        features_version=router.features_version,
        input_tokens=record.input_tokens,
        max_output_tokens=record.max_output_tokens,
        turns=record.turns,
        tools=record.tools,
        images=record.images,
        wants_json=record.wants_json,
    )


def vector_of(record: DecisionRecord, features_version: str) -> Vector:
    """The recorded vector, or one of the recorded text. Raises CallerError where the router can use neither."""
    if not features_version:
        return NO_VECTOR
    if record.vector and record.features_version == features_version:
        return unpacked(record)
    if not record.prompt_text:
        has = f"has features of version {record.features_version}" if record.vector else "has no features"
        raise CallerError(f"this router reads features of version {features_version}; the record {has} and no text")
    from routers.features import shipped_featurizer

    return shipped_featurizer().describe(
        record.prompt_text, input_tokens=record.input_tokens, max_output_tokens=record.max_output_tokens,
        turns=record.turns, tools=record.tools, images=record.images, wants_json=record.wants_json,
    ).vector  # fmt: skip


def candidates_then(record: DecisionRecord, now: Sequence[Candidate]) -> list[Candidate]:
    """The models of that time at current prices, in the order in which the router saw them."""
    known = {candidate.model: candidate for candidate in now}
    names = {**{one.model: "" for one in record.candidates}, **record.excluded}
    order = [*[name for name in known if name in names], *[name for name in names if name not in known]]
    return [replace(known.get(name, Candidate(name)), healthy=names[name] != UNHEALTHY) for name in order]


def draw_of(record: DecisionRecord) -> float:
    """The recorded draw; where there is none, the middle of the interval of draws that lead to the recorded model."""
    if record.draw is not None:
        return record.draw
    below = 0.0
    for one in record.candidates:
        if one.model == record.model:
            return below + one.probability / 2
        below += one.probability
    return 0.0


def notes_on(record: DecisionRecord, router: Router, changed: Knobs) -> list[str]:
    """Differences that a reader must know before trusting the comparison."""
    notes = []
    label = f"{router.name}@{router.version}"
    if label != record.router:
        notes.append(f"another router: {record.router} then, {label} now")
    values = {field.name: getattr(changed, field.name) for field in fields(Knobs) if field.name != "explore"}
    if stated := {name: value for name, value in values.items() if value is not None}:
        notes.append("knobs turned: " + ", ".join(f"{name} {value:g}" for name, value in stated.items()))
    if record.draw is None:
        notes.append("the number drawn was not recorded; one that leads to the recorded model is used")
    if router.name == "rules" and not record.prompt_text:
        notes.append("the text was not kept, so rules that match on words see none")
    return notes


def compared(record: DecisionRecord, choice: Choice, notes: Sequence[str]) -> dict[str, Any]:
    """Both choices, and each field in which they differ."""
    then = {
        "router": record.router, "model": record.model, "reason": record.reason, "propensity": record.propensity,
        "candidates": _by_model(record.candidates), "excluded": record.excluded,
    }  # fmt: skip
    now = {
        "router": choice.router, "model": choice.model, "reason": choice.reason, "propensity": choice.propensity,
        "candidates": _by_model(candidates_of(choice)), "excluded": dict(choice.excluded),
    }  # fmt: skip
    differs = [name for name in then if not _equal(then[name], now[name])]
    return {
        "decision_id": record.id, "route": record.route, "same_model": record.model == choice.model,
        "same_choice": not differs, "differs": differs, "recorded": then, "replayed": now, "notes": list(notes),
    }  # fmt: skip


def _by_model(candidates: Sequence[CandidateRecord]) -> dict[str, dict[str, float | None]]:
    return {
        one.model: {"quality": one.quality, "cost_usd": one.cost_usd, "probability": one.probability}
        for one in candidates
    }


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are equal up to the vector's rounding: numbers within SAME_WITHIN, or within that share of the
    larger one where both are smaller than it, as costs in dollars are.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, float) and isinstance(other, float):
        scale = max(abs(one), abs(other))
        return abs(one - other) <= SAME_WITHIN * (1.0 if scale > SAME_WITHIN else scale)
    return bool(one == other)
