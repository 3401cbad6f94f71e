"""Plans a job, from its input to its assignment, before a cent is spent.

    lines_of -> judge, estimate, dedupe -> pilot -> arms and limits -> assign -> frontier

Everything that a run needs is saved in the plan's folder. Without a budget, money and quality are traded at the live
route's rate, but for all prompts jointly and within the deadline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cache.acceptance import Acceptance
from cascade.routing import RoutedCascade
from gateway.batch.arms import capacities_of, with_endpoints, with_samples
from gateway.batch.assign import assign
from gateway.batch.climbs import cascade_of, with_climbs
from gateway.batch.dedupe import Deduper, Mode
from gateway.batch.frontier import POINTS, frontier, point_of
from gateway.batch.gather import Gathered, GatherOptions, gather
from gateway.batch.program import Objective, allowed
from gateway.batch.read import DEFAULT_ROUTE, LineReader, ReadOptions
from gateway.batch.scan import Scanner
from gateway.batch.source import lines_of
from gateway.batch.types import PROMPTS_FILE, BadJob, Estimates, PilotReport, Plan, Problem
from gateway.config.types import Config
from gateway.errors import CallerError
from gateway.money.limits import Limit
from gateway.routes import Route, RouteBook
from routers.features import ENCODED, Featurizer, shipped_featurizer
from routers.select import DEFAULT_COST_WEIGHT, exchange_rate

Piloted = tuple[Estimates, PilotReport]
Pilot = Callable[[Gathered], Piloted]

_CHEAPEST = 1e4
"""Most quality points per reference cost: at this rate only money counts, and a higher one would lose the qualities to
rounding.
"""


@dataclass(frozen=True)
class PlanOptions:
    """The limits and wishes for a job."""

    reading: ReadOptions = field(default_factory=ReadOptions)
    budget_usd: float | None = None
    """None: no budget; the plan trades money for quality at the live route's rate."""
    deadline_s: float = math.inf
    skip_bad: bool = False
    dedupe: Mode = "route"
    samples: tuple[int, ...] = ()
    """Best-of-k arms to consider beside single answers."""
    cascade: bool = False
    """Consider arms that escalate to better models by the route's trained cascade."""
    concurrency: int = 0
    """Most calls at once; 0: the plan keeps no bound."""
    processes: int = 1
    frontier_points: int = POINTS
    tenant: str = "default"
    limits: tuple[Limit, ...] = ()
    """Limits of the key that the job runs for."""
    kind: str = ""
    """jsonl, csv, tsv or parquet; empty: taken from the file's name or first bytes."""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanContext:
    """The gateway that will answer the job: its configuration, its routes, and what they have learnt."""

    config: Config
    book: RouteBook
    acceptances: Mapping[str, Acceptance] = field(default_factory=dict)
    """By route: the rule by which its semantic cache takes two questions as the same."""


def plan_job(
    path: Path,
    folder: Path,
    options: PlanOptions,
    context: PlanContext,
    *,
    pilot: Pilot | None = None,
    on_progress: Callable[[int, int], None] = lambda lines, size: None,
) -> Plan:
    """Plan the job and save the plan in `folder`. Raises BadJob with every bad line, Impossible with the limits that
    would be possible, and CallerError for a bad budget, deadline or route.

    `on_progress` is called with the lines and bytes of each block read.
    """
    if options.budget_usd is not None and not options.budget_usd >= 0:
        raise CallerError(f"the budget must be 0 dollars or more, not {options.budget_usd}", param="budget")
    if not options.deadline_s > 0:
        raise CallerError(f"the deadline must be in the future, not {options.deadline_s} s from now", param="deadline")
    if options.reading.route != DEFAULT_ROUTE:
        context.book.find(options.reading.route)
    lines = lines_of(path, max_line_bytes=options.reading.max_body_bytes, kind=options.kind)
    folder.mkdir(parents=True, exist_ok=True)
    embedder = _embedder(context)
    reader = LineReader(context.book, options.reading)
    gathering = GatherOptions(
        Scanner(reader, tuple(context.book.models), options.tenant, options.dedupe, embedder),
        Deduper(shipped_featurizer(), context.acceptances),
        folder / PROMPTS_FILE,
        options.processes if embedder is None else 1,
        options.skip_bad,
        on_progress,
    )
    try:
        gathered = gather(lines, gathering)
        plan = solved(path.name, gathered, options, context, pilot(gathered) if pilot is not None else None)
    except BaseException:
        gathering.file.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()  # fails where there is something else in it
        raise
    plan.save(folder)
    return plan


def _embedder(context: PlanContext) -> Featurizer | None:
    """The configured embedder where a route's router was trained on its vectors, else None."""
    routers = [route.router for route in context.book.routes.values()]
    if not any(router is not None and router.features_version.startswith(ENCODED) for router in routers):
        return None
    from gateway.embedders import open_embedder

    return open_embedder(context.config.embedding)


def solved(
    source: str, gathered: Gathered, options: PlanOptions, context: PlanContext, piloted: Piloted | None = None
) -> Plan:
    """The plan of an input that has been read. Raises BadJob and Impossible, as `plan_job` does."""
    estimates, report = piloted or (gathered.estimates, None)
    estimates, late = _reachable(estimates, gathered, options.skip_bad)
    if options.samples:
        estimates = with_samples(estimates, options.samples)
    estimates = with_endpoints(estimates, context.config, options.deadline_s)
    if options.budget_usd is None:
        objective, budget_usd = Objective(usd_price=live_price(estimates, gathered, context.book)), math.inf
    else:
        objective = Objective()
        budget_usd = max(options.budget_usd - (report.cost_usd if report else 0.0), 0.0)
    cascade = _cascade(gathered, context.book) if options.cascade else None
    if cascade is not None:
        estimates = with_climbs(estimates, cascade, budget_usd, objective, deadline_s=options.deadline_s)
    capacities = capacities_of(
        context.config, context.book, estimates.arms,
        routes=gathered.routes, concurrency=options.concurrency, limits=options.limits,
    )  # fmt: skip
    assignment = assign(
        estimates, budget_usd, deadline_s=options.deadline_s, capacities=capacities, objective=objective
    )
    chosen = point_of(estimates, assignment, budget_usd if math.isfinite(budget_usd) else assignment.cost_usd)
    points = frontier(estimates, options.deadline_s, capacities, points=options.frontier_points)
    return Plan(
        source=source,
        route=options.reading.route,
        prompts=gathered.prompts,
        duplicates=gathered.duplicates,
        problems=(*gathered.problems, *late),
        estimates=estimates,
        assignment=assignment,
        frontier=points,
        chosen=chosen,
        budget_usd=budget_usd,
        deadline_s=options.deadline_s,
        capacities=capacities,
        usd_price=objective.usd_price,
        pilot=report,
        tenant=options.tenant,
        metadata=dict(options.metadata),
    )


def _cascade(gathered: Gathered, book: RouteBook) -> RoutedCascade | None:
    """The trained cascade of the one route that answers all prompts; None where several routes do."""
    route = book.routes.get(gathered.routes[0]) if len(gathered.routes) == 1 else None
    return cascade_of(route) if route is not None else None


def _reachable(estimates: Estimates, gathered: Gathered, skip_bad: bool) -> tuple[Estimates, list[Problem]]:
    """Handle the prompts whose floor is out of reach after the pilot's corrections: they are reported, and where bad
    lines are skipped, each one's floor is lowered to the best quality there is. Raises BadJob where they aren't.
    """
    missed = np.flatnonzero(~allowed(estimates).any(1))
    if not len(missed):
        return estimates, []
    able = np.isfinite(estimates.cost_usd[missed])
    best = np.where(able, estimates.quality[missed], -1.0).max(1)
    prompts = [gathered.prompts[place] for place in missed.tolist()]
    problems = [
        Problem(one.line, one.custom_id, f"after the pilot no model is expected to reach {one.floor:g}; the best "
                f"reaches {reach:.3f}", "floor_unreachable")
        for one, reach in zip(prompts, best.tolist(), strict=True)
    ]  # fmt: skip
    if not skip_bad:
        raise BadJob(problems)
    floor = estimates.floor.copy()
    floor[missed] = best
    return replace(estimates, floor=floor), problems


def live_price(estimates: Estimates, gathered: Gathered, book: RouteBook) -> float:
    """The live route's exchange rate in quality points per dollar; the mean cost of its dearest model is the unit."""
    route: Route | None = next((book.routes[name] for name in gathered.routes if name in book.routes), None)
    if route is None:
        return 0.0
    if route.knobs.cost_weight is None and route.knobs.min_quality is not None:
        rate = _CHEAPEST
    else:
        rate = exchange_rate(DEFAULT_COST_WEIGHT if route.knobs.cost_weight is None else route.knobs.cost_weight)
    able = np.isfinite(estimates.cost_usd)
    paid = np.where(able, estimates.cost_usd, 0.0).sum(0, dtype=np.float64) / np.maximum(able.sum(0), 1)
    return min(rate, _CHEAPEST) / float(paid.max()) if paid.max() > 0 else 0.0


def shares(plan: Plan) -> Sequence[tuple[str, int, float, float]]:
    """Of each arm that answers prompts: label, number of prompts, predicted dollars and mean predicted quality; the arm
    with the most prompts first.
    """
    arm = plan.assignment.arm
    rows = np.flatnonzero(arm >= 0)
    count = np.bincount(arm[rows], minlength=len(plan.estimates.arms))
    usd = np.bincount(arm[rows], plan.estimates.cost_usd[rows, arm[rows]], len(plan.estimates.arms))
    quality = np.bincount(arm[rows], plan.estimates.quality[rows, arm[rows]], len(plan.estimates.arms))
    counted = [
        (one.label, int(count[place]), float(usd[place]), float(quality[place] / count[place]))
        for place, one in enumerate(plan.estimates.arms)
        if count[place]
    ]
    return sorted(counted, key=lambda share: -share[1])
