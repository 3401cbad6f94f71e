"""`headgate whatif`: predicts the effect of knobs. `headgate learn`: retrains a route's router. `headgate limits`:
finds the best output limits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gateway.commands.options import (
    SHARED,
    ConfigPath,
    CostWeight,
    Json,
    MaxCostUsd,
    MaxLatencyS,
    MinQuality,
    RouterSource,
    SinceHours,
    listed,
    open_journal,
    print_json,
    read_config,
    ship,
)
from gateway.errors import CallerError
from gateway.progress_bar import progress_bar

if TYPE_CHECKING:
    from gateway.config.types import Config
    from gateway.learn.dataset import Log
    from gateway.learn.whatif import Answer, Figure, Policy


def add_to(app: typer.Typer) -> None:
    """Register these commands in `app`."""
    for command in (whatif, learn, limits):
        app.command()(command)


def whatif(
    config: ConfigPath = None,
    route: Annotated[str, typer.Option(help="The route to look at.")] = "auto",
    cost_weight: CostWeight = None,
    min_quality: MinQuality = None,
    max_cost_usd: MaxCostUsd = None,
    max_latency_s: MaxLatencyS = None,
    models: Annotated[str, typer.Option(help="Choose among these models only, comma-separated.")] = "",
    accept_at: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Least confidence at which a cascade keeps a cheap answer.")
    ] = None,
    router: RouterSource = "",
    explore: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of requests whose model is drawn at random.")
    ] = None,
    since_hours: SinceHours = 0.0,
    data: Annotated[Path | None, typer.Option(help="Read this folder of outcome data instead of the journal.")] = None,
    json: Json = False,
) -> None:
    """Estimate from the journal what another knob or router would cost and be worth, or what it takes to know."""
    from gateway.learn.threshold import at_threshold
    from gateway.learn.whatif import what_if

    knobs = {
        "cost_weight": cost_weight, "min_quality": min_quality,
        "max_cost_usd": max_cost_usd, "max_latency_s": max_latency_s,
    }  # fmt: skip
    changed = {name: value for name, value in knobs.items() if value is not None}
    others = changed or models or router or explore is not None
    if accept_at is not None and others:
        raise CallerError("--accept-at can't be combined with other knobs: they change which answers it would apply to")
    try:
        with progress_bar("estimating"):
            if data is not None:
                log, policy = _from_folder(data, router, changed, explore)
            else:
                chosen = _in_force(config)
                log, policy = _from_journal(chosen, route, router, changed, models, explore, since_hours)
            answer = at_threshold(log, accept_at) if accept_at is not None else what_if(log, policy)
    except ValueError as error:
        raise CallerError(str(error)) from error
    print_json(answer.as_dict()) if json else show(answer)


def learn(
    config: ConfigPath = None,
    route: Annotated[str, typer.Option(help="The route whose router is to learn.")] = "auto",
    once: Annotated[bool, typer.Option("--once", help="Do one step and exit.")] = False,
    every_s: Annotated[float, typer.Option(min=1.0, help="Seconds between steps.")] = 300.0,
    router: Annotated[str, typer.Option(help="Kind of router to train; default: the route's learn_router.")] = "",
    json: Json = False,
) -> None:
    """Retrain a route's router; test the candidate on the journal, in shadow and as a canary; promote or reject it."""
    from gateway.learn.loop import Loop, LoopThresholds
    from gateway.learn.policy import route_config
    from routers.registry import estimator_named

    chosen = _in_force(config)
    kind = router or route_config(chosen, route).learn_router
    try:
        estimator_named(kind)
    except ValueError as error:
        raise CallerError(str(error)) from error
    loop = Loop.opened(chosen, route, LoopThresholds(router=kind))
    while True:
        ship(chosen, loop.store)
        report = loop.step(time.time())
        print_json(report.as_dict()) if json else typer.echo(str(report))
        if once:
            return
        time.sleep(every_s)


def limits(
    config: ConfigPath = None,
    route: Annotated[str, typer.Option(help="The route to look at.")] = "auto",
    json: Json = False,
) -> None:
    """Show how many tokens the answers of each model need, and the best output limit at the route's cost weight."""
    from gateway.learn.dataset import NothingLogged, read_log
    from gateway.learn.limits import limits_of
    from gateway.learn.policy import route_policy

    chosen = _in_force(config)
    store = open_journal(chosen)
    try:
        policy = route_policy(chosen, store, route)
        ship(chosen, store)
        stated = {model.name: model.max_output_tokens for model in chosen.models}
        with progress_bar("reading the journal"):
            found = limits_of(read_log(store.engine, route=route), list(policy.candidates), stated, policy.knobs)
    except NothingLogged as none:
        raise CallerError(str(none)) from none
    finally:
        store.close()
    if json:
        print_json([one.as_dict() for one in found])
        return
    table = Table("model", "scored", "cut", "finish within (tokens: share)", "best limit")
    for one in found:
        shares = ", ".join(f"{n}: {share:.0%}" for n, share in zip(one.tokens, one.finished, strict=True))
        table.add_row(one.model, str(one.answers), str(one.cut), shares, str(one.best or "too few answers"))
    Console().print(table)


def _in_force(path: Path | None) -> Config:
    """The configuration with the changes that operators made while the gateway ran. Raises ConfigError."""
    from gateway.app import in_force
    from gateway.config.settings import read_settings

    chosen = read_config(path, SHARED)
    return in_force(chosen, read_settings(chosen.server.run_dir))


def show(answer: Answer) -> None:
    """Print the answer as a table, with refusals and notes below it."""
    console = Console()
    table = Table("per request", "as logged", "would be", "difference", "by weighting alone")
    scales = {"quality": (1.0, ""), "cost_usd": (1000.0, " $/1,000"), "latency_s": (1.0, " s")}
    for name, figure in answer.figures.items():
        scale, unit = scales[name]
        table.add_row(f"{name.split('_')[0]}{unit}", *_cells(figure, scale))
    if answer.figures:
        console.print(table)
    for name, refusal in answer.refusals.items():
        console.print(f"{name}: {refusal}")
    shares = ", ".join(
        f"{model} {answer.now_shares[model]:.0%} -> {share:.0%}" for model, share in answer.then_shares.items()
    )
    console.print(
        f"{answer.rounds} logged requests ({answer.labelled} scored), effective sample size {answer.effective:.0f}"
        f"; {shares}"
    )
    if answer.passed_over:
        console.print(f"{answer.passed_over} earlier requests are left out: what the knobs would do was not tried then")
    for note in answer.notes:
        console.print(f"note: {note}")


def _cells(figure: Figure, scale: float) -> list[str]:
    return [
        f"{one.value * scale:.4g} [{one.low * scale:.4g}, {one.high * scale:.4g}]"
        for one in (figure.now, figure.then, figure.difference, figure.snips)
    ]


def _from_journal(
    config: Config, route: str, router: str, changed: Mapping[str, float], models: str, explore: float | None,
    since_hours: float,
) -> tuple[Log, Policy]:  # fmt: skip
    from gateway.learn.dataset import read_log
    from gateway.learn.policy import route_policy

    store = open_journal(config)
    ship(config, store)
    policy = route_policy(config, store, route, router=router, explore=explore)
    names = listed(models)
    kept = [one for one in policy.candidates if not names or one.model in names]
    if not kept:
        raise CallerError(f"route '{route}' has none of these models: {', '.join(names)}")
    since_s = time.time() - since_hours * 3600 if since_hours else 0.0
    log = read_log(store.engine, route=route, since_s=since_s)
    stated: Any = dict(changed)
    store.close()
    return log, replace(policy, candidates=kept, knobs=replace(policy.knobs, **stated))


def _from_folder(
    folder: Path, router: str, changed: Mapping[str, float], explore: float | None
) -> tuple[Log, Policy]:
    from gateway.learn.dataset import log_of_outcomes
    from gateway.learn.whatif import Policy
    from routers.eligible import TYPICAL_OUTPUT_TOKENS
    from routers.outcomes import read_outcomes
    from routers.plugin import PluginRouter
    from routers.registry import open_router
    from routers.types import Candidate, Knobs

    if not router:
        raise CallerError("--data needs --router as well: outcome data does not say which router a route uses")
    log = log_of_outcomes(read_outcomes(folder))
    knobs: Any = dict(changed)
    chosen = open_router(router, explore=explore or 0.0)
    learnt = isinstance(chosen, PluginRouter) and chosen.learned is not None and chosen.learned.cost is not None
    paid = [0.0 if learnt or not usd > 0 else usd for usd in log.mean_cost_usd().tolist()]
    # each model gets a price at which an answer of typical length costs what its answers cost on average
    candidates = [
        Candidate(model, output_usd_per_mtok=usd * 1e6 / TYPICAL_OUTPUT_TOKENS)
        for model, usd in zip(log.models, paid, strict=True)
    ]
    return log, Policy(chosen, candidates, Knobs(**knobs))
