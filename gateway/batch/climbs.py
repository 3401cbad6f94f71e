"""Arms that escalate to a better model where the first answer isn't good enough: a trained cascade in a job's plan.

Each such arm (a climb) starts with one model of the cascade's pool and continues by one of its rules. The rule is the
same for the whole job: the one with which the plan is expected to be worth most. The quality and cost of a climb are
predicted from the prompt alone, as the cascade learnt them together with the rule. Rates and deadlines count such an
arm as one call of its first model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from cascade.planner import Planner, PlanRequest
from cascade.posterior import Prices, logit
from cascade.routing import RoutedCascade
from cascade.types import Plan
from gateway.batch.arms import joined
from gateway.batch.assign import attempted
from gateway.batch.program import Objective
from gateway.batch.types import Arm, Estimates, Floats
from gateway.routes import Route

SAMPLE = 3_000
"""Prompts of a large job on which its rule is chosen."""
_BLOCK = 1 << 16
"""Prompts whose climbs are predicted together."""


@dataclass(frozen=True, slots=True)
class Climbing:
    """A trained cascade that starts with the plan's model and continues by the plan's rule."""

    cascade: RoutedCascade
    opener: str
    rule: int
    writes: bool = False

    def plan(self, request: PlanRequest, share: float = 1.0, most_wrong: float | None = None) -> Plan:
        return self.cascade.plan_from(request, self.opener, self.cascade.rules[self.rule])


def cascade_of(route: Route) -> RoutedCascade | None:
    """The route's trained cascade; None where it can't predict its climbs, or the route promises a share of wrong
    answers (`most_wrong`), which a job's plan doesn't keep.
    """
    return climbing(route.cascade) if not route.config.most_wrong else None


def climbing(planner: Planner | None) -> RoutedCascade | None:
    """The planner where it is a trained cascade whose rules predict climbs, else None; cascades trained by earlier
    versions don't.
    """
    if isinstance(planner, RoutedCascade) and all(rule.gains is not None for rule in planner.rules):
        return planner
    return None


def with_climbs(
    estimates: Estimates,
    cascade: RoutedCascade,
    budget_usd: float,
    objective: Objective,
    *,
    deadline_s: float = math.inf,
    read_usd: Floats | None = None,
) -> Estimates:
    """Add an arm for each model that may start a climb, with the rule that the job gains most by. Returns the same
    estimates where no rule gains anything, or where the cascade has a model that the job may not ask.

    `read_usd`: cost of an answer with its evidence, shape (n, models of the cascade); None: evidence is free.
    """
    places = _places(estimates, cascade)
    if places is None:
        return estimates
    rule = _rule(estimates, cascade, places, budget_usd, objective, deadline_s, read_usd)
    return estimates if rule is None else _wider(estimates, cascade, places, rule, read_usd)


def _places(estimates: Estimates, cascade: RoutedCascade) -> list[int] | None:
    """Arms of the cascade's models that make one live call; None where a model has none."""
    known = {arm.model: place for place, arm in enumerate(estimates.arms) if arm.is_one_call}
    models = cascade.posterior.space.models
    return [known[model] for model in models] if all(model in known for model in models) else None


def _rule(
    estimates: Estimates,
    cascade: RoutedCascade,
    places: list[int],
    budget_usd: float,
    objective: Objective,
    deadline_s: float,
    read_usd: Floats | None,
) -> int | None:
    """The rule with which a sample's best assignment is worth most; None where climbs with no rule are worth more than
    single answers.
    """
    n = len(estimates)
    rows = np.sort(np.random.default_rng(0).permutation(n)[:SAMPLE])
    part, read = estimates.rows(rows), None if read_usd is None else read_usd[rows]
    budget_usd *= len(rows) / n
    climbs = (_wider(part, cascade, places, rule, read) for rule in range(len(cascade.rules)))
    worths = [_worth(one, budget_usd, objective, deadline_s) for one in chain((part,), climbs)]
    best = int(np.argmax(worths))
    return best - 1 if best else None


def _worth(estimates: Estimates, budget_usd: float, objective: Objective, deadline_s: float) -> float:
    """Quality points of the best assignment less the price of its cost; -infinity where there is none."""
    assignment = attempted(estimates, budget_usd, deadline_s=deadline_s, objective=objective)
    return -math.inf if assignment is None else assignment.quality - objective.usd_price * assignment.cost_usd


def _wider(
    estimates: Estimates, cascade: RoutedCascade, places: list[int], rule: int, read_usd: Floats | None
) -> Estimates:
    space = cascade.posterior.space
    actions = space.actions(())
    opening = [at for at, (_, reads_evidence) in enumerate(actions) if reads_evidence]
    openers = [actions[at][0] for at in opening]
    own = [places[j] for j in openers]
    n = len(estimates)
    quality, cost = np.empty((n, len(opening)), np.float32), np.empty((n, len(opening)), np.float32)
    for start in range(0, n, _BLOCK):
        rows = slice(start, start + _BLOCK)
        read = None if read_usd is None else read_usd[rows]
        alone = estimates.quality[rows, places], estimates.cost_usd[rows, places]
        gains, spends = _predicted(cascade, rule, *alone, read)
        quality[rows], cost[rows] = gains[:, opening], spends[:, opening]
    latency = estimates.latency_s[:, own]
    return joined(
        estimates,
        replace(
            estimates,
            arms=tuple(Arm(space.models[j], rule=rule) for j in openers),
            quality=quality,
            quality_sd=estimates.quality_sd[:, own],
            cost_usd=cost,
            output_tokens=estimates.output_tokens[:, own],
            latency_s=latency + estimates.latency_s[:, places].mean(1, keepdims=True),
            quality_shift_sd=np.full(len(own), estimates.quality_shift_sd[places].max(), np.float32),
            cost_shift_sd=np.full(len(own), estimates.cost_shift_sd[places].max(), np.float32),
        ),
    )


def _predicted(
    cascade: RoutedCascade, rule: int, quality: Floats, cost_usd: Floats, read_usd: Floats | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predicted quality and cost in dollars of a climb by each first action, (n, actions). The cost is infinite where
    any model of the cascade may not answer, because the rule was learnt with all of them.
    """
    posterior = cascade.posterior
    able = np.isfinite(cost_usd).all(1, keepdims=True)
    answer = np.where(able, cost_usd, 0.0).astype(np.float64)
    read = answer if read_usd is None else np.where(able, read_usd, 0.0).astype(np.float64)
    chances = posterior.before(logit(quality.astype(np.float64)))
    gains, spends = cascade.rules[rule].opened(posterior.space, chances, Prices(answer, read))
    return gains, np.where(able, spends, np.inf)
