"""Shows a plan to people and to programs: its cost and quality, the models that answer, and what other budgets buy."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.batch.plan import shares
from gateway.batch.types import Impossible, Plan, Point, Problem
from routers.intervals import Interval

SHOWN_PROBLEMS = 20


def as_json(plan: Plan, folder: Path) -> dict[str, Any]:
    """The whole plan but the prompts themselves, for `--json`."""
    card = plan.card()
    del card["duplicates"]
    kinds = [duplicate.kind for duplicate in plan.duplicates]
    return {
        "ok": True,
        "folder": str(folder),
        **card,
        "prompts": len(plan.prompts),
        "duplicates": {kind: kinds.count(kind) for kind in ("exact", "semantic")},
        "gap_share": plan.assignment.gap_share,
        "shares": [
            {"arm": arm, "prompts": count, "cost_usd": cost_usd, "quality": quality}
            for arm, count, cost_usd, quality in shares(plan)
        ],
    }


def problems_json(message: str, problems: tuple[Problem, ...]) -> dict[str, Any]:
    return {
        "ok": False,
        "message": message,
        "problems": [
            {"line": one.line, "custom_id": one.custom_id, "code": one.code, "message": one.message}
            for one in problems
        ],
    }


def impossible_json(impossible: Impossible) -> dict[str, Any]:
    """The error as JSON; a limit is null where no value of it would make the job possible."""
    least = {"least_budget_usd": impossible.least_budget_usd, "least_deadline_s": impossible.least_deadline_s}
    return {
        "ok": False,
        "message": impossible.message,
        "problems": [],
        **{name: value if math.isfinite(value) else None for name, value in least.items()},
    }


def show(plan: Plan, folder: Path, console: Console) -> None:
    """Print the plan as tables."""
    _show_head(plan, console)
    console.print(_arms(plan))
    if plan.frontier:
        console.print(_frontier(plan))
    _show_limits(plan, console)
    if plan.problems:
        show_problems(plan.problems, console)
    command = f"headgate batch run --plan {shlex.quote(str(folder))}"
    console.print(f"the job itself has cost nothing yet; run it with: {command}", soft_wrap=True, markup=False)


def show_problems(problems: tuple[Problem, ...], console: Console) -> None:
    """Print the first problems, each with its line."""
    for problem in problems[:SHOWN_PROBLEMS]:
        console.print(f"  {problem}", style="yellow", markup=False, highlight=False)
    if len(problems) > SHOWN_PROBLEMS:
        console.print(f"  and {len(problems) - SHOWN_PROBLEMS:,} more; --json lists them")


def _show_head(plan: Plan, console: Console) -> None:
    repeats = len(plan.duplicates)
    also = f" and {repeats:,} that repeat one of them" if repeats else ""
    left_out = f"; {len(plan.problems):,} bad lines left out" if plan.problems else ""
    console.print(f"{plan.source}: {len(plan.prompts):,} prompts to answer{also}{left_out}", highlight=False)
    chosen = plan.chosen
    budget = "no budget" if math.isinf(plan.budget_usd) else f"budget {_usd(plan.budget_usd)}"
    deadline = "no deadline" if math.isinf(plan.deadline_s) else f"deadline {spoken(plan.deadline_s)}"
    console.print(f"{budget}, {deadline}", highlight=False)
    console.print(
        f"[bold]expected cost {_usd_interval(chosen.cost_usd)}, expected quality {_quality(chosen.quality)}[/bold]; "
        f"no plan within these limits is expected to be more than {plan.assignment.gap_share:.3%} better",
        highlight=False,
    )
    if plan.pilot is not None:
        pilot = plan.pilot
        skipped = f", {pilot.skipped} not made" if pilot.skipped else ""
        console.print(
            f"pilot: {pilot.calls} calls{skipped}, {pilot.failures} failed, {_usd(pilot.cost_usd)} spent, "
            f"{pilot.scored} answers scored",
            highlight=False,
        )


def _arms(plan: Plan) -> Table:
    table = Table("answered by", "prompts", "share", "expected cost", "mean quality")
    for arm, count, cost_usd, quality in shares(plan):
        table.add_row(arm, f"{count:,}", f"{count / len(plan.prompts):.1%}", _usd(cost_usd), f"{quality:.3f}")
    return table


def _frontier(plan: Plan) -> Table:
    table = Table("", "budget", "quality (95 %)", "mostly answered by", title="What budgets buy")
    rows = [*((point, False) for point in plan.frontier if _new(point, plan)), (plan.chosen, True)]
    for point, is_chosen in sorted(rows, key=lambda row: row[0].budget_usd):
        style = "bold green" if is_chosen else None
        mark = "chosen" if is_chosen else ""
        table.add_row(mark, _usd(point.budget_usd), _quality(point.quality), _mix(point), style=style)
    return table


def _new(point: Point, plan: Plan) -> bool:
    """Whether the point differs in cost from the point before it and from the plan itself."""
    place = plan.frontier.index(point)
    before = plan.frontier[place - 1] if place else None
    return point.cost_usd not in (plan.chosen.cost_usd, before.cost_usd if before else None)


def _mix(point: Point, most: int = 2) -> str:
    total = max(sum(point.calls.values()), 1)
    return ", ".join(f"{arm} {count / total:.0%}" for arm, count in list(point.calls.items())[:most])


def _show_limits(plan: Plan, console: Console) -> None:
    if plan.capacities and plan.assignment.finish_s >= 1:
        console.print(f"the busiest limit allows the job to end in {spoken(plan.assignment.finish_s)}", highlight=False)
    for name, price in plan.assignment.capacity_prices.items():
        if price > 1e-9:
            console.print(f"  with a higher limit of {name} the plan would be better", highlight=False, markup=False)
    price = plan.assignment.usd_price
    if price >= 0.01 and math.isfinite(plan.budget_usd):
        console.print(f"one more dollar would answer about {price:,.2f} more prompts right", highlight=False)


def _usd(value: float) -> str:
    return f"${value:,.2f}" if value >= 1 else f"${value:.4g}"


def _usd_interval(interval: Interval) -> str:
    return f"{_usd(interval.value)} ({_usd(interval.low)} to {_usd(interval.high)})"


def _quality(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def spoken(seconds: float) -> str:
    """A length of time in a unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def draw(plan: Plan, path: Path) -> None:
    """Draw the frontier with its intervals and the chosen point into a file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.8), layout="constrained")
    points = sorted(plan.frontier, key=lambda point: point.cost_usd.value)
    cost = [point.cost_usd.value for point in points]
    axes.plot(cost, [point.quality.value for point in points], color="#1f6f8b", label="best plan for each budget")
    axes.fill_between(
        cost, [point.quality.low for point in points], [point.quality.high for point in points],
        color="#1f6f8b", alpha=0.15, linewidth=0, label="95 % interval",
    )  # fmt: skip
    chosen = plan.chosen
    axes.errorbar(
        chosen.cost_usd.value, chosen.quality.value,
        xerr=_reach(chosen.cost_usd), yerr=_reach(chosen.quality),
        fmt="o", color="#c0392b", capsize=3, label="this plan",
    )  # fmt: skip
    if math.isfinite(plan.budget_usd):
        in_sight = plan.budget_usd < 2 * max((*cost, chosen.cost_usd.high))
        axes.axvline(
            plan.budget_usd if in_sight else math.nan, color="#888888", linestyle="--", linewidth=1,
            label=f"budget, ${plan.budget_usd:,.2f}" + ("" if in_sight else ", beyond the right edge"),
        )  # fmt: skip
    axes.set_xlabel("expected cost of the job, dollars")
    axes.set_ylabel("expected mean quality")
    if cost and min(cost) > 0 and max(cost) / min(cost) > 20:
        axes.set_xscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _reach(interval: Interval) -> list[list[float]]:
    return [[interval.value - interval.low], [interval.high - interval.value]]
