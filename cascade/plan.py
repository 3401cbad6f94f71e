"""From a router's choice to a plan: what to try first, what to escalate to, what to fall back on.

Refuses what could never be climbed safely: an unknown strategy, a rung without price, a floor outside (0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from math import inf, isnan

from cascade.prompts import Message
from cascade.strategies import BUILDERS, StrategyInputs
from cascade.types import Limits, Plan, PlanError, Step, price_of
from routers.types import Choice

NAMES = ("none", "confidence", "certified", *BUILDERS)
"""Values of a route's `cascade`; a trained cascade is named by its artefact's path instead (cascade.artifact).
"certified" has plans of its own (cascade.promise); without a certificate the chosen model answers.
"""
DEFAULT_ACCEPT_AT = 0.5
MAX_STEPS = 3
"""Longer fixed chains rarely save what they spend twice (Bouchard 2026)."""


def plan_for(
    choice: Choice,
    strategy: str,
    worst_cost_usd: Mapping[str, float],
    *,
    accept_at: float | Mapping[str, float] | None = None,
    limits: Limits | None = None,
    retries: int = 1,
    fallbacks: Sequence[str] = (),
    messages: Sequence[Message] = (),
    speculates: bool = False,
    judge: str = "",
) -> Plan:
    """The plan of one request. Raises PlanError for an unknown strategy, a model without a price, or a floor outside
    (0, 1].

    `worst_cost_usd` prices every model that may be tried; `fallbacks` are tried after the ranked models. `judge` is the
    model that verifies answers; empty means the model that answered. `messages` is the chat, for strategies that write
    requests of their own (verify, refine, skeleton).
    """
    if strategy not in NAMES:
        raise PlanError(f"unknown cascade {strategy!r}; known: {', '.join(NAMES)}")
    rungs = [choice.model] if strategy in ("none", "certified") else _rungs(choice)
    built = None
    if strategy in BUILDERS:
        floor, most = _floor(accept_at, choice.model), (limits or Limits()).max_attempts
        step = partial(_step, worst_cost_usd=worst_cost_usd, accept_at=-inf)
        inputs = StrategyInputs(choice, step, rungs[1:], messages, floor, most, judge)
        built = BUILDERS[strategy](inputs)
    if strategy in BUILDERS and built is None:
        rungs = rungs[:1]
    steps = [_step(model, worst_cost_usd, _floor(accept_at, model)) for model in rungs[:-1]]
    steps.append(_step(rungs[-1], worst_cost_usd, -inf))
    deciding, attempts = built if built is not None else (None, tuple(steps))
    tried = {step.model for step in attempts}
    rest = [m for m in dict.fromkeys((*choice.ranked, *fallbacks)) if m not in tried]
    spare = tuple([_step(model, worst_cost_usd, -inf) for model in rest])
    return Plan(attempts, spare, limits or Limits(), retries, deciding, speculates=speculates)


@lru_cache(1024)
def plain_plan(model: str, others: tuple[str, ...], limits: Limits, retries: int) -> Plan:
    """The plan that asks one model and, where that fails, the others in order; the same object each time.

    Its steps have no price. Raises PlanError for a limit on the cost, which could not be kept without one.
    """
    if limits.max_cost_usd < inf:
        raise PlanError("a plan without prices can't keep a limit on the cost")
    spare = [Step(other) for other in dict.fromkeys(others) if other != model]
    return Plan((Step(model),), tuple(spare), limits, retries)


def _rungs(choice: Choice) -> list[str]:
    """The chosen model, then those with a higher estimated quality, the best last. Without an estimate of the chosen
    model: those with a higher cost.
    """
    worth = {e.model: e.quality for e in choice.estimates if not isnan(e.quality)}
    if choice.model not in worth:
        worth = {e.model: e.cost_usd for e in choice.estimates}
    floor = worth.get(choice.model, inf)
    better = [m for m in choice.probabilities if m not in choice.excluded and worth.get(m, -inf) > floor]
    better.sort(key=lambda m: worth[m])
    return [choice.model, *better[-(MAX_STEPS - 1) :]]


def _floor(accept_at: float | Mapping[str, float] | None, model: str) -> float:
    if isinstance(accept_at, Mapping):
        accept_at = accept_at.get(model)
    floor = DEFAULT_ACCEPT_AT if accept_at is None else accept_at
    if not 0.0 < floor <= 1.0:
        raise PlanError(f"accept_at of {model!r} must be in (0, 1], not {floor}")
    return floor


def _step(model: str, worst_cost_usd: Mapping[str, float], accept_at: float) -> Step:
    return Step(model, accept_at, price_of(model, worst_cost_usd))
