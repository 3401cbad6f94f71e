"""Cascade routing as a strategy of the climb: the fitted posterior and rule, one request at a time.

The router's estimates for this query enter once; each answer's evidence and text move every model's chances. A failed
model is never asked again. Evidence that did not come leaves its answer out of the state: it may be kept, but it
convinces nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, isnan, nan

import numpy as np

from cascade.agreement import agreements
from cascade.calibrate import RISKS
from cascade.confidence import confidence, vetoed
from cascade.planner import PlanRequest, Typical
from cascade.posterior import NEVER, Matrix, Posterior, Prices, Rule, Scene, Space, State, logit, shown
from cascade.posterior_fit import cheapest_matching
from cascade.types import Ask, Fits, Keep, Limits, Outcome, Plan, PlanError, Step, price_of
from routers.types import Estimate


@dataclass(frozen=True, slots=True)
class CascadeRouting:
    """Strategy for one query. Arrays are in the order of the posterior's models, one row."""

    posterior: Posterior
    rule: Rule
    prior: Matrix
    prices: Prices
    worst_cost_usd: Mapping[str, float]
    abstain_below: float = 0.0
    """Give nothing when the best answer to be had is less likely right than this."""
    absent: frozenset[str] = frozenset()
    """Models that can't be asked now."""
    opener: str = ""
    """The model that is asked first, and read; empty: as the rule finds."""
    _places: Mapping[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_places", {m: j for j, m in enumerate(self.posterior.space.models)})

    def next(self, history: Sequence[Outcome], fits: Fits) -> Ask | Keep:
        if self.opener and not history and fits(step := self._step(self._places[self.opener], True)):
            return self._ask(step, {self._places[self.opener]})
        state, chances = self._read(history)
        answered = {self._places[o.model]: i for i, o in enumerate(history) if not o.failure}
        out = {self._places[o.model] for o in history} | {self._places[m] for m in self.absent}
        options = self.rule.options(self.posterior.space, state, chances, self.prices)[0]
        m = chances.shape[1]
        actions = self.posterior.space.actions(state)
        closed = [1 + j for j in out] + [1 + m + i for i, (j, _) in enumerate(actions) if j in out]
        options[closed] = NEVER
        options[0] = max((float(chances[0, j]) for j in answered), default=NEVER)
        for pick in np.argsort(-options, kind="stable").tolist():
            if options[pick] <= NEVER / 2:
                break
            if pick == 0:
                return self._keep(answered, chances)
            final = pick <= m
            j, read = (pick - 1, False) if final else actions[pick - 1 - m]
            if final and chances[0, j] < self.abstain_below:
                return Keep(None, "abstained")
            if fits(step := self._step(j, read)):
                return self._ask(step, set() if final else out | {j})
        kept = self.best(history)
        return Keep(kept, "exhausted" if kept is not None else "abstained" if answered else "failed")

    def best(self, history: Sequence[Outcome]) -> int | None:
        _, chances = self._read(history)
        answered = [(float(chances[0, self._places[o.model]]), i) for i, o in enumerate(history) if not o.failure]
        chance, at = max(answered, default=(0.0, None))
        return at if chance >= self.abstain_below else None

    def _keep(self, answered: Mapping[int, int], chances: Matrix) -> Keep:
        j = max(answered, key=lambda j: chances[0, j])
        if chances[0, j] < self.abstain_below:
            return Keep(None, "abstained")
        return Keep(answered[j])

    def _ask(self, step: Step, out: set[int]) -> Ask:
        others = [self._step(j, False) for j in range(len(self._places)) if out and j not in out]
        return Ask((step,), tuple(others))

    def _step(self, j: int, read: bool) -> Step:
        model = self.posterior.space.models[j]
        return Step(model, -inf, self.worst_cost_usd[model], reads_confidence=read)

    def _read(self, history: Sequence[Outcome]) -> tuple[State, Matrix]:
        """The state the history is in, and every model's chance of being right there."""
        space, m = self.posterior.space, len(self._places)
        sure, texts, heads = np.full((1, m), nan), [""] * m, list[tuple[int, bool]]()
        vetoes = []
        for outcome in history:
            if outcome.failure:
                continue
            j = self._places[outcome.model]
            if vetoed(outcome.evidence):
                vetoes.append(j)
                continue
            sure[0, j], texts[j] = confidence(outcome.evidence), outcome.evidence.text
            heads.append((j, not isnan(sure[0, j])))
        state = _reachable(space, heads)
        alike = agreements(texts) if len(state) > 1 else np.eye(m)
        chances = self.posterior.chances(state, Scene(self.prior, shown(sure), alike[None]))
        chances[:, vetoes] = 0.0
        return state, chances


def _reachable(space: Space, heads: Sequence[tuple[int, bool]]) -> State:
    """The state of the answers that the space knows, in the order they came, as many as its depth allows."""
    usable = [(j, read) for j, read in heads if j in space.pool and read in space.readings]
    return tuple(sorted(usable[: space.depth]))


def routed_plan(
    posterior: Posterior,
    rule: Rule,
    estimates: Sequence[Estimate],
    worst_cost_usd: Mapping[str, float],
    *,
    read_cost_usd: Mapping[str, float] | None = None,
    limits: Limits | None = None,
    retries: int = 1,
    abstain_below: float = 0.0,
    absent: frozenset[str] = frozenset(),
    fallbacks: tuple[Step, ...] = (),
    opener: str = "",
) -> Plan:
    """A plan that climbs by cascade routing, from the router's estimates for this query.

    `read_cost_usd`: what an answer costs when its evidence is read; None: evidence is free.
    """
    known = {e.model: e for e in estimates}
    models = posterior.space.models
    for model in models:
        if model not in known or not isfinite(known[model].quality + known[model].cost_usd):
            raise PlanError(f"cascade routing needs an estimate of {model!r}")
    quality = np.array([[known[m].quality for m in models]])
    answer = np.array([[known[m].cost_usd for m in models]])
    read = answer if read_cost_usd is None else np.array([[read_cost_usd[m] for m in models]])
    strategy = CascadeRouting(
        posterior, rule, logit(quality), Prices(answer, read), worst_cost_usd, abstain_below, absent, opener
    )
    steps = tuple(Step(m, -inf, price_of(m, worst_cost_usd)) for m in models if m not in absent)
    return Plan(steps, fallbacks, limits or Limits(), retries, strategy)


@dataclass(frozen=True, slots=True)
class RoutedCascade:
    """Everything a gateway needs to plan climbs by cascade routing."""

    posterior: Posterior
    rules: Sequence[Rule] = field(repr=False)
    held_out: Matrix
    """(rules, 2): mean cost and quality on held-out training rows."""
    best_single: float
    """Quality of the best single model on the training rows."""
    typical: Typical
    sure: Matrix = field(default_factory=lambda: np.full((0, len(RISKS)), inf), repr=False)
    """(rules, risks): how sure an answer must be so that at most that share of those given is wrong (`abstention`); inf
    where the training rows could not tell.
    """
    writes: bool = field(default=False, init=False)

    def plan_from(self, request: PlanRequest, opener: str, rule: Rule) -> Plan:
        """A climb that begins with that model, whatever the rule would open with, and goes on by the rule."""
        models = tuple(self.typical)
        return routed_plan(
            self.posterior, rule, request.estimates(self.typical), request.worst_cost_usd,
            absent=request.absent(models), limits=request.limits, retries=request.retries, opener=opener,
        )  # fmt: skip

    def rule_for(self, share: float = 1.0) -> Rule:
        """The cheapest rule that held that share of the best single model's quality on held-out training rows."""
        return self.rules[self._place(share)]

    def least_chance(self, share: float, risk: float) -> float:
        """Least probability of being right at which no more than `risk` of the given answers are wrong; infinite where
        the training rows can't tell.
        """
        known = [at for at, one in enumerate(RISKS) if one <= risk]
        return float(self.sure[self._place(share), known[-1]]) if known and len(self.sure) else inf

    def _place(self, share: float) -> int:
        return cheapest_matching(self.held_out, share * self.best_single)

    def plan(self, request: PlanRequest, share: float = 1.0, most_wrong: float | None = None) -> Plan:
        """A plan for one request. A model that isn't eligible or has no price now is never asked.

        `most_wrong`: of the answers given, the share that may be wrong; then no other model stands in.
        """
        models = tuple(self.typical)
        return routed_plan(
            self.posterior,
            self.rule_for(share),
            request.estimates(self.typical),
            request.worst_cost_usd,
            absent=request.absent(models),
            limits=request.limits,
            retries=request.retries,
            abstain_below=0.0 if most_wrong is None else self.least_chance(share, most_wrong),
            fallbacks=request.stand_ins(models) if most_wrong is None else (),
        )
