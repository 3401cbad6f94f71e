"""Estimates the quality, cost and latency that another knob or router version would have had, from the journal.

The changed policy decides every logged query again, and the outcomes of the logged decisions are re-weighted to it
(doubly robust, and by self-normalised weighting for comparison). Quality, cost and latency have intervals, and so has
the paired difference to the logged decisions. Where the log has too little evidence there is a refusal that says how
much more is needed, never a number. `python -m gateway.learn.whatif_check` measures how often the intervals hold.

Where only some answers are scored, a model's scored answers stand for all of its answers. Models may be scored at
different rates, but if the score itself decides whether it is reported (users who complain and never praise), the
quality of a model is biased and no interval shows it. A route should then score a random part itself.

A cascade behind the route is part of what was logged: a changed choice is the first model's. A changed
`accept_at` moves only the answers whose confidence lies between the two thresholds; see
`gateway.learn.threshold`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from gateway.journal.record import DecisionRecord
from gateway.learn.alarms import changes
from gateway.learn.dataset import Log, NothingLogged, one_sided
from routers import ope
from routers.intervals import Interval
from routers.ope import Array, Refusal
from routers.types import Candidate, Knobs, Query, Router, Undecided

NO_VECTOR = np.zeros(0, np.float32)
FIGURES = ("quality", "cost_usd", "latency_s")
REPRICED = 0.01
"""A relative difference from today's prices above which a cost was paid at other prices."""
REPRICED_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Policy:
    """A router with its knobs and the models it may choose from."""

    router: Router
    candidates: Sequence[Candidate]
    knobs: Knobs
    default_model: str = ""
    """The model that answers where the router can't decide; empty: the last candidate."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity per request: as logged, as it would have been, and the difference."""

    now: Interval
    then: Interval
    difference: Interval
    snips: Interval
    """The same quantity as `then`, by self-normalised weighting alone, for comparison."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Figures by name (quality, cost_usd, latency_s), or why there are none."""

    rounds: int
    labelled: int
    effective: float
    """Effective number of logged rounds for the changed policy."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    """Refusals by the name of the figure that can't be estimated."""
    now_shares: Mapping[str, float] = field(default_factory=dict)
    then_shares: Mapping[str, float] = field(default_factory=dict)
    """Share of requests per model; for the changed policy it is exact."""
    passed_over: int = 0
    """Number of early rounds left out, because the changed policy's choices were not tried yet."""
    notes: Sequence[str] = ()
    """Warnings of changes within the log, which make its figures less valid for the future."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON. A figure is null where it was refused."""
        figures: dict[str, Any] = {name: _figure_dict(self.figures.get(name)) for name in FIGURES}
        return {
            "rounds": self.rounds, "labelled": self.labelled, "effective_rounds": self.effective, **figures,
            "refusals": {name: _refusal_dict(one) for name, one in self.refusals.items()},
            "shares": {"now": dict(self.now_shares), "then": dict(self.then_shares)},
            "passed_over": self.passed_over, "notes": list(self.notes),
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


def what_if(log: Log, policy: Policy) -> Answer:
    """The figures of the policy on the log. Raises NothingLogged where the policy needs vectors that are not there."""
    log = widened(log, [candidate.model for candidate in policy.candidates])
    answer = valued(log, decided(policy, log))
    used = log.rows(np.arange(answer.passed_over, len(log)))
    notes = (one_sided(used), _partly_scored(used), *_drifts(used), *_repriced(used, policy.candidates))
    return replace(answer, notes=tuple(filter(None, notes)))


def _partly_scored(log: Log) -> str:
    share = float(log.labelled.mean())
    if not 0.0 < share < 1.0:
        return ""
    return f"{share:.0%} of the answers are scored: quality takes those of each model as typical of all its answers"


def _drifts(log: Log) -> list[str]:
    return [
        f"answers of {one.model} went from {one.before:.2f} to {one.after:.2f} "
        f"at {_date(log.records[one.place].time_s)}: what was logged before says little of now"
        for one in changes(log)
    ]


def _date(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _repriced(log: Log, candidates: Sequence[Candidate]) -> list[str]:
    """A note for each model of whose answers many were not paid at today's prices; only answers with plain input and
    output tokens are compared.
    """
    found = []
    for one in candidates:
        paid = np.array([ratio for record in log.records if (ratio := _at_todays_price(record, one)) is not None])
        away = float((np.abs(paid - 1.0) > REPRICED).mean()) if len(paid) else 0.0
        if away > REPRICED_SHARE:
            many = f"{away:.0%} of what {one.model} answered"
            found.append(f"{many} was paid at other prices than today's; cost is as paid")
    return found


def _at_todays_price(record: DecisionRecord, candidate: Candidate) -> float | None:
    """The cost of a decision's only attempt as a share of its cost at today's price; None where that can't be compared.
    """
    if len(record.attempts) != 1 or (answer := record.attempts[0]).model != candidate.model or answer.estimated:
        return None
    usage = {name: count for name, count in answer.usage.items() if count}
    if answer.failure or answer.gathered or not usage or usage.keys() - {"input", "output"}:
        return None
    now = usage.get("input", 0) * candidate.input_usd_per_mtok + usage.get("output", 0) * candidate.output_usd_per_mtok
    # a nano-dollar either way is rounding
    return (answer.cost_nanousd + 1) / (1000 * now + 1) if max(answer.cost_nanousd, 1000 * now) > 100 else None


def valued(log: Log, target: Array, *, seed: int = 0) -> Answer:
    """The figures of decisions with probabilities `target` (n, m), from the first round on in which the log tries them.
    """
    start = ope.supported_from(log.logged, target)
    if start:  # else the log as it is, which keeps the main axes of its vectors from one target to the next
        log, target = log.rows(np.arange(start, len(log))), target[start:]
    x, price = log.covariates(), _prices(log)
    rewards = dict(zip(FIGURES, (log.score, log.cost_usd, log.latency_s), strict=True))
    figures: dict[str, Figure] = {}
    refusals: dict[str, Refusal] = {}
    for name, reward in rewards.items():
        if not np.isfinite(reward).any():
            continue
        rounds = log.rounds(reward)
        verdict = ope.judged(rounds, target, price)
        if isinstance(verdict, Refusal):
            refusals[name] = verdict
        else:
            figures[name] = _figure(rounds, target, ope.cross_fitted(x, rounds, seed=seed))
    return Answer(
        rounds=len(log), labelled=int(log.labelled.sum()),
        effective=ope.overlap(log.rounds(np.zeros(len(log))), target).effective,
        figures=figures, refusals=refusals,
        now_shares=_shares(log.models, log.logged), then_shares=_shares(log.models, target),
        passed_over=start,
    )  # fmt: skip


def _figure(rounds: ope.Rounds, target: Array, model: Array) -> Figure:
    found = ope.valued(rounds, target, model)
    return Figure(
        now=ope.as_logged(rounds, model),
        then=found.best,
        difference=ope.difference(rounds, target, rounds.logged, model),
        snips=found.snips,
    )


def _shares(models: Sequence[str], chances: Array) -> dict[str, float]:
    return dict(zip(models, chances.mean(0).tolist(), strict=True))


def _prices(log: Log) -> Array:
    """Mean cost of a call of each model: as paid, or else as the router expected."""
    paid = log.mean_cost_usd()
    expected: dict[str, list[float]] = {model: [] for model in log.models}
    for record in log.records:
        for one in record.candidates:
            if one.cost_usd is not None and one.model in expected:
                expected[one.model].append(one.cost_usd)
    guessed = np.array([np.mean(expected[model]) if expected[model] else np.nan for model in log.models])
    return np.where(np.isfinite(paid), paid, guessed)


def widened(log: Log, models: Sequence[str]) -> Log:
    """The log with columns of probability 0 for models that it doesn't have."""
    new = tuple(model for model in models if model not in log.models)
    if not new:
        return log
    return replace(
        log, models=(*log.models, *new), logged=np.concatenate([log.logged, np.zeros((len(log), len(new)))], 1)
    )


def decided(policy: Policy, log: Log) -> Array:
    """Probabilities (n, m) of the policy on every logged query. Raises NothingLogged where the policy needs vectors
    that are not there.
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
