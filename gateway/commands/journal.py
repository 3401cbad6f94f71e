"""Commands that work on the journal's database: explain, export, keys, versions, promote, rollback, migrate."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table

from gateway.commands.options import (
    DATABASE,
    ConfigPath,
    Json,
    SinceHours,
    open_journal,
    print_json,
    read_config,
    ship,
)
from gateway.config.check import is_path
from gateway.config.types import Config, Period
from gateway.errors import CallerError
from gateway.money.prices import dollars
from gateway.progress_bar import progress_bar

_OPTIONS = {
    "name": "NAME", "tenant": "--tenant", "models": "--model", "budget_usd": "--budget-usd", "rpm": "--rpm",
    "tpm": "--tpm",
}  # fmt: skip
"""The option or argument of `keys create` that sets each field of a key."""

keys = typer.Typer(help="Create, list, rotate and revoke virtual keys. Only hashes are stored.", no_args_is_help=True)


def _grace(text: str) -> float:
    from gateway.commands.batch_options import seconds
    from gateway.keys import LONGEST_GRACE_S

    grace_s = 0.0 if text.strip() == "0" else seconds(text)
    if grace_s > LONGEST_GRACE_S:
        raise typer.BadParameter(f"earlier secrets can stay valid for {LONGEST_GRACE_S / 86400:.0f} days at most")
    return grace_s


def add_to(app: typer.Typer) -> None:
    """Register these commands in `app`."""
    for command in (explain, export, versions, promote, rollback, migrate):
        app.command()(command)
    app.add_typer(keys, name="keys")


def explain(
    decision: Annotated[str, typer.Argument(help="Id of a decision, response or request.")],
    config: ConfigPath = None,
    json: Json = False,
) -> None:
    """Explain why a request was answered as it was: candidates, estimates, propensity, attempts, cost."""
    from gateway.journal.lookup import find_decision
    from gateway.journal.spool import spool_dir
    from gateway.journal.view import decision_view

    chosen = read_config(config, DATABASE)
    store = open_journal(chosen)
    record = find_decision(lambda: store, spool_dir(chosen.server.run_dir), decision)
    if record is None:
        raise CallerError(f"no decision has the id '{decision}'")
    view = decision_view(record)
    view["feedback"] = store.feedback(decision_id=record.id)
    if json:
        print_json(view)
    else:
        _show_decision(view)


def export(
    out: Annotated[Path, typer.Option(help="Folder for queries.parquet and outcomes.parquet.")],
    config: ConfigPath = None,
    route: Annotated[str, typer.Option(help="Only this route.")] = "",
    since_hours: SinceHours = 0.0,
    json: Json = False,
) -> None:
    """Write the scored requests of the journal as outcome data, for `train`, `evaluate` and other tools."""
    from gateway.journal.export import export as write

    chosen = read_config(config, DATABASE)
    ship(chosen, open_journal(chosen))
    since_s = time.time() - since_hours * 3600 if since_hours else 0.0
    with progress_bar("exporting"):
        done = write(chosen.storage.url, out, since_s=since_s, route=route)
    if route and not done.queries and all(one.name != route for one in chosen.routes):
        raise CallerError(f"no route is called '{route}'")
    if json:
        print_json(msgspec.to_builtins(done))
    else:
        found = f"{done.queries} queries, {done.outcomes} outcomes"
        if done.models:
            found += f" of {', '.join(sorted(done.models))}"
        hint = {
            0: "; only scored decisions are exported: send feedback, or widen the selection",
            1: "; training a router takes two models or more: set `explore`, so that others are tried too",
        }.get(len(done.models), "")
        typer.echo(f"{out}: {found}{hint}")


def versions(
    route: Annotated[str, typer.Argument(help="Only the versions of this route.")] = "",
    config: ConfigPath = None,
    json: Json = False,
) -> None:
    """List all registered versions of trained routers, newest first, and which one is live."""
    listed = _versions(config).list(route)
    if json:
        print_json([msgspec.to_builtins(version) for version in listed])
        return
    table = Table("route", "version", "state", "made", "artefact")
    for one in listed:
        table.add_row(one.name, one.version, one.state, _when(one.time_s), one.artifact)
    Console().print(table if listed else "there is no version; routes use the routers that the configuration names")


def promote(
    route: Annotated[str, typer.Argument(help="The route to serve.")],
    version: Annotated[str, typer.Argument(help="A version (see `versions`), or the path of an artefact to register.")],
    config: ConfigPath = None,
    json: Json = False,
) -> None:
    """Serve a route with a trained router from the next request on; no stream is dropped."""
    known = _versions(config)
    if not any(one.name == route for one in read_config(config, DATABASE).routes):
        raise CallerError(f"no route is called '{route}'")
    if Path(version).is_file():
        try:
            version = known.add(route, Path(version), actor="command").version
        except ValueError as error:
            raise CallerError(f"{error}; nothing was promoted") from None
    elif is_path(version):
        raise CallerError(f"{version}: no such file; nothing was promoted")
    live = known.promote(route, version, actor="command")
    print_json(msgspec.to_builtins(live)) if json else typer.echo(f"{route} is now served by {live.version}")


def rollback(
    route: Annotated[str, typer.Argument(help="The route to roll back.")], config: ConfigPath = None, json: Json = False
) -> None:
    """Serve the version that was live before this one, or the configuration's router."""
    back = _versions(config).roll_back(route, actor="command")
    if json:
        print_json(msgspec.to_builtins(back))
    else:
        typer.echo(f"{route} is now served by {back.version if back else 'the router that the configuration names'}")


def migrate(config: ConfigPath = None) -> None:
    """Bring the database's schema up to date. Tables and columns are only added, never dropped."""
    from gateway.journal.schema import migrate as run

    applied = run(str(read_config(config, DATABASE).storage.url))
    typer.echo(f"applied {', '.join(applied)}; the schema is up to date" if applied else "the schema is up to date")


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="A name for the key.")],
    config: ConfigPath = None,
    tenant: Annotated[str, typer.Option(help="The tenant whose cache and budgets the key shares.")] = "default",
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Route or model that it may use (repeat); default: all.")
    ] = None,
    rpm: Annotated[int | None, typer.Option(help="Requests per minute.", min=1)] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens per minute.", min=1)] = None,
    budget_usd: Annotated[float | None, typer.Option(help="Most dollars that it may spend in each period.")] = None,
    budget_period: Annotated[Period, typer.Option(help="Period after which the budget starts again (UTC).")] = "month",
    json: Json = False,
) -> None:
    """Create a key and print it. It can't be shown again."""
    from gateway.key_check import faults
    from gateway.keys import new_key

    chosen = read_config(config, DATABASE)
    plain, record = new_key(name, time.time(), tenant=tenant)
    record = msgspec.structs.replace(
        record, models=tuple(models or ()), rpm=rpm, tpm=tpm, budget_usd=budget_usd, budget_period=budget_period
    )
    for field, why in faults(record, chosen):
        raise CallerError(f"{_OPTIONS[field]}: {why}")
    store = open_journal(chosen)
    try:
        store.add_key(record, "command")
    except ValueError as error:
        raise CallerError(f"{error}; revoke it first, or choose another name") from None
    _publish(chosen, store)
    print_json({"id": record.id, "key": plain}) if json else typer.echo(f"{record.id}\n{plain}")


@keys.command("list")
def list_keys(config: ConfigPath = None, json: Json = False) -> None:
    """List all keys, revoked ones included, without their secrets."""
    listed = open_journal(read_config(config, DATABASE)).keys()
    if json:
        hidden = {"key_hash": None, "earlier": None}
        print_json([{**msgspec.to_builtins(key), **hidden, "earlier_until_s": key.earlier_until_s} for key in listed])
        return
    rest = [Column(name, overflow="fold") for name in ("tenant", "models", "budget", "revoked")]
    table = Table(Column("name and id", no_wrap=True), *rest, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for key in listed:
        budget = f"{dollars(key.budget_usd)}/{key.budget_period}" if key.budget_usd is not None else ""
        gone = _when(key.revoked_s)[:10] if key.revoked_s else ""
        table.add_row(f"{key.name}\n{key.id}", key.tenant, ", ".join(key.models) or "all", budget, gone)
    Console().print(table)


@keys.command("rotate")
def rotate_key(
    id: Annotated[str, typer.Argument(help="The key's id.")],
    grace: Annotated[
        float, typer.Option(parser=_grace, metavar="TIME", help="How long the old secret stays valid, such as 90m.")
    ] = "24h",  # type: ignore[assignment]  # typer parses it
    config: ConfigPath = None,
    json: Json = False,
) -> None:
    """Replace a key's secret and print the new one, once. Budgets, limits and usage stay with the key."""
    from gateway.keys import new_secret, rotated

    chosen = read_config(config, DATABASE)
    secret, now, store = new_secret(), time.time(), open_journal(chosen)
    record = store.change_key(id, lambda held: rotated(held, secret, now, grace), "command")
    if record is None:
        raise CallerError(f"no key has the id '{id}'")
    _publish(chosen, store)
    if json:
        print_json({"id": id, "key": secret, "earlier_until_s": record.earlier_until_s})
        return
    typer.echo(f"{id}\n{secret}")
    ends = f"stay valid until {_when(now + grace)} UTC" if grace else "stop working within two seconds"
    typer.echo(f"earlier secrets {ends}", err=True)


@keys.command("revoke")
def revoke_key(id: Annotated[str, typer.Argument(help="The key's id.")], config: ConfigPath = None) -> None:
    """Revoke a key: it stops working within two seconds."""
    from gateway.keys import revoked

    chosen = read_config(config, DATABASE)
    store = open_journal(chosen)
    if store.change_key(id, revoked, "command") is None:
        raise CallerError(f"no key has the id '{id}'")
    _publish(chosen, store)
    typer.echo(f"{id} is revoked")


def _versions(path: Path | None) -> Any:
    from gateway.promote import Versions

    config = read_config(path, DATABASE)
    return Versions(open_journal(config), config.server.run_dir)


def _publish(config: Config, store: Any) -> None:
    """Publish the keys to the workers, which read the settings file and not the database."""
    from gateway.config.settings import publish_keys

    publish_keys(config.server.run_dir, store.keys())


def _show_decision(view: dict[str, Any]) -> None:
    from gateway.journal.view import cases_told, miss_told

    console = Console(markup=False)
    ended = f"{view['status']} {view['error']}".rstrip()
    console.print(f"{view['id']}  {view['surface']} {view['requested_model']} -> "
                  f"{view['answered_model'] or 'no answer'} ({ended})")
    console.print(f"router {view['router'] or 'none'}: {view['reason'] or view['cache']}, "
                  f"propensity {view['propensity']}, cost ${view['cost_usd']:.9f}, cache {view['cache']}")
    if missed := miss_told(view["cache_why"]):
        console.print(f"semantic cache: {missed}")
    if cases := cases_told(view["cases_shown"]):
        console.print(cases)
    table = _folding("candidate", "quality", "cost", "probability", "", title="Candidates")
    for one in view["candidates"]:
        quality, cost = one.get("quality"), one.get("cost_usd")
        table.add_row(one["model"], "" if quality is None else f"{quality:.3f}",
                      "" if cost is None else f"${cost:.9f}", f"{one.get('probability', 0):.3f}",
                      "chosen" if one["model"] == view["model"] else "")
    for model, why in view["excluded"].items():
        table.add_row(model, "", "", "0", f"excluded: {why}")
    console.print(table)
    attempts = _folding("attempt", "started", "took", "status", "failure", "cost", title="Attempts")
    for one in view["attempts"]:
        attempts.add_row(one["deployment"], f"{one.get('started_s', 0):.3f} s", f"{one.get('latency_s') or 0:.3f} s",
                         str(one.get("status", "")), one.get("failure", ""), f"${one['cost_usd']:.9f}")
    console.print(attempts)
    console.print(f"verdict: {view['verdict'] or 'none'}; feedback: {len(view['feedback'])}")


def _folding(*names: str, title: str) -> Table:
    """A table that wraps its cells in a narrow terminal, because a truncated number would be misread."""
    return Table(*(Column(name, overflow="fold") for name in names), title=title)


def _when(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M")
