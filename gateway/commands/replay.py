"""`headgate replay`: decides a recorded request again, offline, and shows what differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

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
    open_journal,
    print_json,
    read_config,
)
from gateway.errors import CallerError


def add_to(app: typer.Typer) -> None:
    """Register this command in `app`."""
    app.command()(replay)


def replay(
    decision: Annotated[str, typer.Argument(help="Id of a decision, response or request.")],
    config: ConfigPath = None,
    router: RouterSource = "",
    cost_weight: CostWeight = None,
    min_quality: MinQuality = None,
    max_cost_usd: MaxCostUsd = None,
    max_latency_s: MaxLatencyS = None,
    json: Json = False,
) -> None:
    """Decide a recorded request again, offline, with today's router and knobs or others, and show what differs."""
    from gateway.journal.lookup import find_decision
    from gateway.journal.spool import spool_dir
    from gateway.learn.policy import route_policy
    from gateway.redecide import choose_again, compared, notes_on, refuse_undecided
    from routers.types import Knobs

    chosen = read_config(config, SHARED)
    store = open_journal(chosen)
    try:
        record = find_decision(lambda: store, spool_dir(chosen.server.run_dir), decision)
        if record is None:
            raise CallerError(f"no decision has the id '{decision}'")
        refuse_undecided(record)
        try:
            policy = route_policy(chosen, store, record.route, router=router)
        except (ValueError, OSError) as error:
            raise CallerError(f"--router: {error}") from None
    finally:
        store.close()
    changed = Knobs(cost_weight, min_quality, max_cost_usd, max_latency_s)
    comparison = compared(record, choose_again(record, policy, changed), notes_on(record, policy.router, changed))
    print_json(comparison) if json else show(comparison)


def show(comparison: Mapping[str, Any]) -> None:
    """Print the comparison as a table, with notes below it."""
    then, now = comparison["recorded"], comparison["replayed"]
    table = Table("candidate", "quality", "cost", "probability", "", title=comparison["decision_id"])
    for model in {**then["candidates"], **now["candidates"]}:
        before, after = then["candidates"].get(model, {}), now["candidates"].get(model, {})
        cells = [_change(before.get(name), after.get(name)) for name in ("quality", "cost_usd", "probability")]
        marks = [word for word, side in (("recorded", then), ("replayed", now)) if side["model"] == model]
        table.add_row(model, *cells, ", ".join(marks))
    for model in {**then["excluded"], **now["excluded"]}:
        why = [side["excluded"].get(model, "eligible") for side in (then, now)]
        table.add_row(model, "", "", "", f"excluded: {why[0]}" if why[0] == why[1] else f"{why[0]} -> {why[1]}")
    console = Console()
    console.print(table)
    same = "the same choice" if comparison["same_choice"] else f"differs in {', '.join(comparison['differs'])}"
    console.print(f"{then['model']} ({then['reason']}) then, {now['model']} ({now['reason']}) now: {same}")
    for note in comparison["notes"]:
        console.print(f"note: {note}")


def _change(before: float | None, after: float | None) -> str:
    texts = ["" if value is None else f"{value:.6g}" for value in (before, after)]
    return texts[0] if texts[0] == texts[1] else " -> ".join(text or "none" for text in texts)
