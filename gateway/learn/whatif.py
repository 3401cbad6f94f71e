"""What another knob or router version would have cost and been worth, answered from the journal.

The changed policy decides every logged query again; what came of the logged decisions is re-weighted to
it (doubly robust, with self-normalised weighting beside). Quality, cost and latency each have an
interval, and so has the difference to what was done, which is paired. Where the log can't tell there is a
refusal with what it would take, never a number.

A cascade behind the route is part of what was logged: a changed choice is the first model's. A changed
`accept_at` moves only the answers whose confidence lies between the two thresholds; see
`gateway.learn.threshold`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gateway.journal.record import DecisionRecord
from gateway.learn.dataset import Log, NothingLogged
from routers import ope
from routers.ope import Array, Evidence, Interval, Refusal
from routers.types import Candidate, Knobs, Query, Router, Undecided

NO_VECTOR = np.zeros(0, np.float32)
FIGURES = ("quality", "cost_usd", "latency_s")


@dataclass(frozen=True, slots=True)
class Policy:
    """A router with its knobs and the models it may choose from."""

    router: Router
    candidates: Sequence[Candidate]
    knobs: Knobs
    default_model: str = ""
    """What answers where the router can't decide."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity per request: as logged, as it would have been, and the difference."""

    now: Interval
    then: Interval
    difference: Interval
    snips: Interval
    """The same as `then`, by weighting alone: a reader may compare."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Figures by name (quality, cost_usd, latency_s), or why there are none."""

    rounds: int
    labelled: int
    effective: float
    """Logged rounds that speak of the changed policy, counted as effective ones."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    """By figure: what the log can't tell."""
    now_shares: Mapping[str, float] = field(default_factory=dict)
    then_shares: Mapping[str, float] = field(default_factory=dict)
    """Share of requests per model; of the changed policy this is known exactly."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON. A figure is null where it was refused."""
        told: dict[str, Any] = {name: _figure_dict(self.figures.get(name)) for name in FIGURES}
        return {
            "rounds": self.rounds, "labelled": self.labelled, "effective_rounds": self.effective, **told,
            "refusals": {name: _refusal_dict(one) for name, one in self.refusals.items()},
            "shares": {"now": dict(self.now_shares), "then": dict(self.then_shares)},
        }  # fmt: skip


def _figure_dict(figure: Figure | None) -> dict[str, Any] | None:
    if figure is None:
        return None
    return {name: getattr(figure, name).as_dict() for name in ("now", "then", "difference", "snips")}


def _refusal_dict(refusal: Refusal) -> dict[str, Any]:
    return {
        "message": str(refusal), "reason": refusal.reason, "explored_calls": refusal.explored_calls,
        "calls": refusal.calls, "cost_usd": refusal.cost_usd if np.isfinite(refusal.cost_usd) else None,
        "effective_rounds": refusal.overlap.effective, "unsupported": refusal.overlap.unsupported,
    }  # fmt: skip


def what_if(log: Log, policy: Policy, *, evidence: Evidence | None = None, seed: int = 0) -> Answer:
    """Values the policy on the log."""
    log = widened(log, [candidate.model for candidate in policy.candidates])
    return valued(log, decided(policy, log), evidence=evidence, seed=seed)


def valued(log: Log, target: Array, *, evidence: Evidence | None = None, seed: int = 0) -> Answer:
    """Values decisions (n, m) on the log."""
    x, price = log.covariates(), _prices(log)
    rewards = dict(zip(FIGURES, (log.score, log.cost_usd, log.latency_s), strict=True))
    figures: dict[str, Figure] = {}
    refusals: dict[str, Refusal] = {}
    for name, reward in rewards.items():
        if not np.isfinite(reward).any():
            continue
        rounds = log.rounds(reward)
        verdict = ope.judged(rounds, target, evidence, price)
        if isinstance(verdict, Refusal):
            refusals[name] = verdict
        else:
            figures[name] = _figure(rounds, target, ope.cross_fitted(x, rounds, seed=seed))
    return Answer(
        rounds=len(log), labelled=int(log.labelled.sum()),
        effective=ope.overlap(log.rounds(np.zeros(len(log))), target).effective,
        figures=figures, refusals=refusals,
        now_shares=_shares(log.models, log.logged), then_shares=_shares(log.models, target),
    )  # fmt: skip


def _figure(rounds: ope.Rounds, target: Array, model: Array) -> Figure:
    found = ope.valued(rounds, target, model)
    return Figure(
        now=ope.as_logged(rounds),
        then=found.best,
        difference=ope.difference(rounds, target, rounds.logged, model),
        snips=found.estimates["snips"],
    )


def _shares(models: Sequence[str], chances: Array) -> dict[str, float]:
    return dict(zip(models, chances.mean(0).tolist(), strict=True))


def _prices(log: Log) -> Array:
    """What a call of each model costs: as paid, else as the router expected."""
    paid = log.mean_cost_usd()
    expected: dict[str, list[float]] = {model: [] for model in log.models}
    for record in log.records:
        for one in record.candidates:
            if one.cost_usd is not None and one.model in expected:
                expected[one.model].append(one.cost_usd)
    guessed = np.array([np.mean(expected[model]) if expected[model] else np.nan for model in log.models])
    return np.where(np.isfinite(paid), paid, guessed)


def widened(log: Log, models: Sequence[str]) -> Log:
    """The log with columns for models that it never knew: their probability was zero."""
    new = tuple(model for model in models if model not in log.models)
    if not new:
        return log
    return replace(
        log, models=(*log.models, *new), logged=np.concatenate([log.logged, np.zeros((len(log), len(new)))], 1)
    )


def decided(policy: Policy, log: Log) -> Array:
    """Probabilities (n, m) of the policy on every logged query. NothingLogged where the queries' vectors
    aren't there for it to read.
    """
    place = {model: j for j, model in enumerate(log.models)}
    version = policy.router.features_version
    if version and not log.x.shape[1]:
        raise NothingLogged("the router reads features; the journal has neither vectors of this version nor texts")
    chances = np.zeros((len(log), len(log.models)))
    for i, record in enumerate(log.records):
        for model, chance in _choice(policy, record, log.x[i], version).items():
            chances[i, place[model]] = chance
    return chances


def _choice(policy: Policy, record: DecisionRecord, vector: Any, version: str) -> Mapping[str, float]:
    away = record.excluded
    candidates = [
        replace(one, healthy=False) if away.get(one.model) == "unhealthy" else one for one in policy.candidates
    ]
    query = Query(
        record.prompt_text, vector if version else NO_VECTOR, version, record.input_tokens, None,
        record.turns or 1, record.tools, record.images, record.wants_json, record.route,
    )  # fmt: skip
    try:
        return policy.router.choose(query, candidates, policy.knobs, 0.0).probabilities
    except Undecided:
        return {policy.default_model or candidates[-1].model: 1.0}
