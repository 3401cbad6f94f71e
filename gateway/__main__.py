"""The command `headgate`: `serve`, `check-config` and `demo`, and the sub-commands of gateway/commands."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gateway.config.check import is_path
from gateway.config.extras import missing_extras
from gateway.config.idle import idle
from gateway.config.load import check, file_of, load
from gateway.config.settings import Settings, read_settings
from gateway.config.types import Config
from gateway.errors import ConfigError, HeadgateError
from gateway.journal.durable import database_said
from gateway.serve.tls import tls_warnings
from gateway.start import speak_utf8

app = typer.Typer(
    name="headgate",
    help="An LLM routing and cascade gateway.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigPath = Annotated[
    Path | None,
    typer.Option("--config", "-c", exists=True, dir_okay=False,
                 help="Configuration (TOML); default: ./headgate.toml if there is one, else the built-in one."),
]
_EMBEDDED = "the embedded defaults"
log = logging.getLogger("headgate.config")
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def main() -> None:
    speak_utf8()
    mount()
    run()


def run() -> None:
    """Run the command. An error that the gateway foresees ends it with one clear message and exit status 2."""
    try:
        app()
    except KeyboardInterrupt:  # before a command runs: the command itself decides how it ends
        sys.exit(128 + signal.SIGINT)
    except ConfigError as error:
        typer.secho("The configuration can't be used:", fg="red", err=True)
        for problem in error.problems:
            typer.echo(f"  {problem}", err=True)
        sys.exit(2)
    except HeadgateError as error:
        typer.secho(error.message, fg="red", err=True)
        sys.exit(2)
    except OSError as error:
        typer.secho(f"{error.filename or 'headgate'}: {error.strerror or error}", fg="red", err=True)
        sys.exit(2)
    except Exception as error:
        explanation = database_said(error)
        if not explanation:
            raise
        typer.secho(f"storage.url: the database can't be used: {explanation}", fg="red", err=True)
        sys.exit(2)


def mount() -> None:
    """Add the sub-commands of gateway/commands. Each imports the rest of the gateway only when it runs."""
    from gateway.commands import batch, cascade, journal, learn, loop, replay

    for module in (journal, cascade, loop, replay, batch, learn):
        module.add_to(app)


def artefact_problems(config: Config, settings: Settings) -> list[str]:
    """Missing extras, and faults of the files that the configuration and the settings name (routers, cascades, cases,
    models, cache rules).
    """
    problems = missing_extras(config)
    for check_artefact in _artefact_checks(config, settings):
        try:
            check_artefact()
        except ConfigError as error:
            problems += error.problems
    return problems


def _artefact_checks(config: Config, settings: Settings) -> Iterator[Callable[[], object]]:
    """Functions that open one kind of file each and raise ConfigError for its faults. What no file needs stays
    unimported.
    """
    named = {*settings.routers.values(), *(name for one in config.routes for name in (one.router, one.cascade))}
    if any(is_path(name) for name in named):
        from gateway.app import open_cascades, openable_routers

        yield lambda: openable_routers(config, settings, settings)
        yield lambda: open_cascades(config)
    for index, route in enumerate(config.routes):
        if route.solved:
            from gateway.solved import open_solved

            yield partial(open_solved, route.solved, route.solved_most, f"routes[{index}].solved")
    yield partial(_find_local_models, config)
    if config.embedding.kind == "folder" or any(route.cache_rule for route in config.routes):
        yield lambda: _open_cache_rules(config)


def _find_local_models(config: Config) -> None:
    from local_models.options import no_models

    problems = [
        f"providers[{index}].options.{name}: {fault}"
        for index, one in enumerate(config.providers)
        if one.kind == "local" and not one.base_url
        for name, fault in no_models(one.options)
    ]
    if problems:
        raise ConfigError(problems)


def _open_cache_rules(config: Config) -> None:
    """Open them with the version of the embedder whose vectors the cache would compare."""
    from gateway.answer_cache import open_pair_rules
    from gateway.embedders import open_embedder

    embedder = open_embedder(config.embedding)
    open_pair_rules(config, embedder.version if embedder and config.embedding.cache else "the shipped table")


def show_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"headgate {version('headgate')}")
        raise typer.Exit


@app.callback()
def headgate(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """An LLM routing and cascade gateway."""


def schema_problems(config: Config) -> list[str]:
    """Why the database can't be used: its folder is missing, or the schema of the PostgreSQL server is outdated, with
    which workers would refuse every budget. A server that is down is no problem: workers wait for it.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from gateway.journal.schema import check_schema, missing_folder, open_engine

    if not config.storage.url.startswith("postgres"):
        return [fault] if (fault := missing_folder(config.storage.url)) else []
    engine = open_engine(config.storage.url)
    try:
        check_schema(engine)
    except SQLAlchemyError:
        return []
    except ConfigError as error:
        return error.problems
    finally:
        engine.dispose()
    return []


def problems_at_start(config: Config) -> list[str]:
    """Problems that would stop the workers. They are looked for in a process of its own: what that has to load is freed
    when it ends, while the supervisor lives as long as the gateway.
    """
    from gateway.serve.aside import forked

    settings, pool = read_settings(config.server.run_dir), forked(1)
    if pool is None:
        return artefact_problems(config, settings) or schema_problems(config)
    with pool:
        artefacts = pool.submit(artefact_problems, config, settings)
        return artefacts.result() or pool.submit(schema_problems, config).result()


@app.command()
def serve(
    config: ConfigPath = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes, in place of server.workers.", min=1)] = None,
) -> None:
    """Run the gateway (workers, control process, local models) until SIGTERM."""
    from gateway.logs import secrets_of, set_up
    from gateway.serve.listen import admin_host, in_url
    from gateway.serve.supervise import serve as run
    from gateway.serve.supervise import unshared_by

    path = file_of(config)
    chosen = load(path, os.environ)
    if problems := problems_at_start(chosen):
        hint = [] if path else [f"these are {_EMBEDDED}; a headgate.toml here replaces them"]
        raise ConfigError([*problems, *hint])
    set_up(chosen.telemetry.log_level, chosen.telemetry.log_format, secrets_of(chosen))
    for warning in idle(chosen):
        log.warning("%s", warning)
    server = chosen.server
    count = workers or server.workers
    if problem := unshared_by(count, chosen):
        raise ConfigError([f"{'--workers' if workers else 'server.workers'}: {problem}"])
    scheme = "https" if server.tls_certificate else "http"

    def ready() -> None:
        with suppress(OSError):  # nobody reads standard output, or the disk behind it is full
            typer.echo(f"Headgate answers on {scheme}://{in_url(server.host)}:{server.port}/v1 with {count} worker(s); "
                       f"admin on {scheme}://{in_url(admin_host(server))}:{server.admin_port}")

    asyncio.run(run(chosen, path, ready, workers=workers))


@app.command("check-config")
def check_config(
    file: Annotated[Path | None, typer.Argument(help="The same as --config.", exists=True, dir_okay=False)] = None,
    config: ConfigPath = None,
    json: Json = False,
) -> None:
    """List everything that is wrong with a configuration; warn of settings without effect and of certificates that
    expire soon.
    """
    import msgspec

    path = file_of(file or config)
    chosen, problems = check(path, os.environ)
    problems = problems or (artefact_problems(chosen, Settings()) if chosen is not None else [])
    warnings = [*idle(chosen), *tls_warnings(chosen, time.time())] if chosen is not None else []
    if json:
        report = {"ok": not problems, "problems": problems, "warnings": warnings}
        typer.echo(msgspec.json.encode(report).decode())
    elif problems or chosen is None:
        typer.secho(f"{path or _EMBEDDED}: {len(problems)} problem(s)", fg="red", err=True)
        for problem in problems:
            typer.echo(f"  {problem}", err=True)
    else:
        typer.echo(f"{path or _EMBEDDED}: {len(chosen.providers)} provider(s), {len(chosen.models)} "
                   f"deployment(s), {len(chosen.routes)} route(s), all in order")
        for warning in warnings:
            typer.secho(f"  warning: {warning}", fg="yellow", err=True)
    raise typer.Exit(2 if problems else 0)


@app.command()
def demo(
    queries: Annotated[int, typer.Option(help="Number of queries to send.", min=20)] = 600,
    json: Json = False,
    seed: Annotated[int, typer.Option(help="Seed of the workload.")] = 7,
) -> None:
    """Send a real workload to two real local models and show what routing saved."""
    from gateway.demo.run import run

    raise typer.Exit(asyncio.run(run(queries, seed=seed, as_json=json)))


if __name__ == "__main__":
    main()
