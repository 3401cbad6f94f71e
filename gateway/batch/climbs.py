"""Arms that ask one model and, where its answer doesn't convince, a better one: a trained cascade in a job's plan.

Each opens with one model of the cascade's pool and goes on by one of its rules, the same for the whole job: the one
with which the plan is expected to be worth most. What a climb will give is foretold from the prompt alone, as the
cascade learnt it beside the rule. Rates and deadlines count such an arm as one call of its first model.
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

LOOKED_AT = 3_000
"""Prompts of a large job on which its rule is sought."""
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Climbing:
    """A trained cascade that begins where the plan says and goes on by the plan's rule."""

    cascade: RoutedCascade
    opener: str
    rule: int
    writes: bool = False

    def plan(self, request: PlanRequest, share: float = 1.0, most_wrong: float | None = None) -> Plan:
        return self.cascade.plan_from(request, self.opener, self.cascade.rules[self.rule])


def cascade_of(route: Route) -> RoutedCascade | None:
    """The route's trained cascade, where it can foretell its climbs and promises nothing else."""
    return climbing(route.cascade) if not route.config.most_wrong else None


def climbing(planner: Planner | None) -> RoutedCascade | None:
    """A cascade whose rules say what a climb will give; those trained by earlier versions don't."""
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
    """An arm more for each model that may open a climb, by the rule that the job gains most by; the same estimates
    where none gains anything, or where the cascade knows a model that the job may not ask.

    `read_usd`: cost of an answer with its evidence, (n, models of the cascade); None: evidence is free.
    """
    places = _places(estimates, cascade)
    if places is None:
        return estimates
    rule = _rule(estimates, cascade, places, budget_usd, objective, deadline_s, read_usd)
    return estimates if rule is None else _wider(estimates, cascade, places, rule, read_usd)


def _places(estimates: Estimates, cascade: RoutedCascade) -> list[int] | None:
    """Columns of the cascade's models, each asked once and live."""
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
    """The rule with which a sample's best assignment is worth most; None: none is worth more than no climb."""
    n = len(estimates)
    rows = np.sort(np.random.default_rng(0).permutation(n)[:LOOKED_AT])
    part, read = estimates.rows(rows), None if read_usd is None else read_usd[rows]
    budget_usd *= len(rows) / n
    climbs = (_wider(part, cascade, places, rule, read) for rule in range(len(cascade.rules)))
    worths = [_worth(one, budget_usd, objective, deadline_s) for one in chain((part,), climbs)]
    best = int(np.argmax(worths))
    return best - 1 if best else None


def _worth(estimates: Estimates, budget_usd: float, objective: Objective, deadline_s: float) -> float:
    found = attempted(estimates, budget_usd, deadline_s=deadline_s, objective=objective)
    return -math.inf if found is None else found.quality - objective.usd_price * found.cost_usd


def _wider(
    estimates: Estimates, cascade: RoutedCascade, places: list[int], rule: int, read_usd: Floats | None
) -> Estimates:
    space = cascade.posterior.space
    actions = space.actions(())
    opens = [at for at, (_, read) in enumerate(actions) if read]
    openers = [actions[at][0] for at in opens]
    own = [places[j] for j in openers]
    n = len(estimates)
    quality, cost = np.empty((n, len(opens)), np.float32), np.empty((n, len(opens)), np.float32)
    for start in range(0, n, _BLOCK):
        rows = slice(start, start + _BLOCK)
        read = None if read_usd is None else read_usd[rows]
        alone = estimates.quality[rows, places], estimates.cost_usd[rows, places]
        gains, spends = _foretold(cascade, rule, *alone, read)
        quality[rows], cost[rows] = gains[:, opens], spends[:, opens]
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


def _foretold(
    cascade: RoutedCascade, rule: int, quality: Floats, cost_usd: Floats, read_usd: Floats | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Chance and dollars of a climb by each first action, (n, actions); infinite dollars where a model may not answer:
    the climb was not learnt without it.
    """
    posterior = cascade.posterior
    able = np.isfinite(cost_usd).all(1, keepdims=True)
    answer = np.where(able, cost_usd, 0.0).astype(np.float64)
    read = answer if read_usd is None else np.where(able, read_usd, 0.0).astype(np.float64)
    chances = posterior.before(logit(quality.astype(np.float64)))
    gains, spends = cascade.rules[rule].opened(posterior.space, chances, Prices(answer, read))
    return gains, np.where(able, spends, np.inf)
