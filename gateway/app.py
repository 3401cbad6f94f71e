"""The composition root: the only place where a worker's parts are constructed and wired together."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import msgspec

from cascade.artifact import TrainedCascade, load_cascade
from gateway.answer_cache import open_cache
from gateway.api import HANDLERS
from gateway.asgi import App
from gateway.attempt import Sender, Timeouts
from gateway.batch.store import BatchStore
from gateway.config.check import is_path
from gateway.config.overlay import overlaid, read_secrets
from gateway.config.settings import Current, Settings
from gateway.config.types import Config, RouteConfig
from gateway.drive import Driver
from gateway.embedders import open_embedder
from gateway.engines import Engines, engine_waits
from gateway.errors import ConfigError
from gateway.fleet import Fleet
from gateway.hedging import Hedging
from gateway.journal.reader import Reader
from gateway.journal.spool import Spool, spool_dir
from gateway.keys import Keyring
from gateway.learn.online import Online, open_bandit_store
from gateway.live_streams import LiveStreams
from gateway.metrics import Metrics
from gateway.money.budgets import open_budgets
from gateway.money.pacing import Purses
from gateway.prefixes import Prefixes
from gateway.providers import Provider, open_provider
from gateway.routes import KNOB_NAMES, RouteBook, knobs_of, share_of
from gateway.services import Chore, Ids, Services
from gateway.stored.responses import Responses
from gateway.tracing import tracing_to
from routers.canary import Canary
from routers.features import shipped_featurizer
from routers.knob_override import KnobOverride
from routers.registry import open_router
from routers.types import Router

MAX_ANSWER_BYTES = 64 * 1024 * 1024
RETIRE_WITHIN_S = 600.0
"""Longest that requests in flight keep a provider's connections after it left the configuration."""
log = logging.getLogger("headgate.app")


def build(config: Config, index: int = 0) -> App:
    """The application of the worker with this index. Raises ConfigError where a part can't be constructed."""
    return App(build_services(config, Current(config.server.run_dir), index), HANDLERS)


def build_services(config: Config, current: Current, index: int) -> Services:
    now, clock, draws = time.monotonic, time.time, iter(random.Random().random, None)
    current.base = config
    try:
        config = in_force(config, current.settings)
    except ConfigError as error:  # the file was edited since, and the changes no longer fit it
        log.error("changes made at run time don't fit the configuration file, so it is used without them: %s", error)
    server = config.server
    embedder = open_embedder(config.embedding)
    fleet = Fleet(config.models, queueing={one.name for one in config.providers if one.kind == "local"})
    providers = {provider.name: open_provider(provider, server) for provider in config.providers}
    timeouts = Timeouts(server.first_byte_timeout_s, server.stall_timeout_s, server.request_timeout_s)
    ledger, limits = open_budgets(config, clock)
    sender = Sender(fleet, providers, timeouts, ledger, MAX_ANSWER_BYTES, now)
    directory = spool_dir(server.run_dir)
    spool = Spool(directory)
    journal = Reader(config.storage.url, directory)
    online = Online(open_bandit_store(config, index), journal)
    prefixes = Prefixes(fleet)
    driver = Driver(sender, draws, Hedging(), prefixes, LiveStreams(server.stream_keepalive_s))
    purses = Purses(clock, server.workers)
    services = Services(
        config=config,
        now=now,
        clock=clock,
        draws=draws,
        ids=Ids(),
        keyring=Keyring(config.auth, lambda: current.settings.keys),
        ledger=ledger,
        limits=limits,
        book=open_book(config, current.settings),
        fleet=fleet,
        featurizer=shipped_featurizer,
        embedder=embedder,
        cache=open_cache(config, shipped_featurizer, embedder if config.embedding.cache else None),
        driver=driver,
        responses=Responses(spool, journal, clock, server),
        spool=spool,
        journal=journal,
        batches=BatchStore(journal, server.run_dir),
        spool_dir=directory,
        metrics=Metrics(),
        tracing=tracing_to(config.telemetry.otlp_endpoint, {p.name: p.kind for p in config.providers}),
        current=current,
        online=online,
        purses=purses,
        prefixes=prefixes,
        chores=[
            *hints_between(config, fleet, now), Engines(fleet, sender).run, ledger.run, online.run, online.catch_up,
            driver.streams.run,
            partial(purses.run, journal),
        ],
        index=index,
    )
    watch(services)
    return services


def watch(services: Services) -> None:
    """Register the metrics that are read from the parts at each scrape."""
    metrics, ledger, sender = services.metrics, services.ledger, services.driver.sender
    metrics.watch_fleet(services.fleet, services.now)
    metrics.watch("headgate_engine_waiting", engine_waits(services.fleet))
    metrics.watch("headgate_holds_outstanding", lambda: {(): ledger.outstanding})
    metrics.watch("headgate_redis_away", lambda: {(): float(getattr(ledger, "is_away", False))})
    metrics.watch("headgate_budgets_spoilt", lambda: {(): float(len(getattr(ledger, "spoilt", ())))})
    metrics.watch("headgate_overrun_usd", lambda: {(): ledger.overrun_nanousd / 1e9})
    metrics.watch("headgate_bandit_answers", services.online.answers)
    metrics.watch("headgate_purse_fullness", services.purses.fullness)
    metrics.watch("headgate_pool_connections", lambda: pool_connections(sender.providers))
    metrics.watch("headgate_journal_dropped", lambda: {(): services.spool.lost})
    metrics.watch("headgate_journal_dropping", lambda: {(): float(bool(services.spool.alarm))})
    metrics.watch("headgate_router_lost", lambda: {(name,): 1.0 for name in services.book.lost})


def hints_between(config: Config, fleet: Fleet, now: Callable[[], float]) -> list[Chore]:
    """The chore by which workers share open breakers through Redis; none, and no Redis client, without a Redis."""
    if not config.storage.redis_url:
        return []
    from gateway.replicas.hints import open_hints

    return [open_hints(config, fleet, now).run]


def open_routers(config: Config, settings: Settings) -> dict[str, Router]:
    """Each route's router: its promoted version, else the one that the configuration names. Raises ConfigError."""
    routers, problems = {}, []
    for index, route in enumerate(config.routes):
        try:
            routers[route.name] = open_route_router(route, settings)
        except (ValueError, OSError) as error:
            problems.append(f"routes[{index}].router: {error}")
    if problems:
        raise ConfigError(problems)
    return routers


def open_cascades(config: Config) -> dict[str, TrainedCascade]:
    """The trained cascades, by route, where the route names an artefact. Raises ConfigError."""
    cascades, problems = {}, []
    for index, route in enumerate(config.routes):
        if is_path(route.cascade):
            try:
                trained = cascades[route.name] = load_cascade(Path(route.cascade))
                if route.most_wrong and trained.least_chance(share_of(knobs_of(route)), route.most_wrong) == inf:
                    problems.append(f"routes[{index}].most_wrong: {route.cascade} can't tell so well what is right")
            except (ValueError, OSError) as error:
                problems.append(f"routes[{index}].cascade: {error}")
    if problems:
        raise ConfigError(problems)
    return cascades


def open_book(config: Config, settings: Settings, served: Settings | None = None) -> RouteBook:
    """The routes. `served`: the settings that were in force until now; None where `settings` already are. Raises
    ConfigError.
    """
    routers, lost = openable_routers(config, settings, served or settings)
    return RouteBook(config, routers, open_cascades(config), settings.floors, lost)


def openable_routers(config: Config, settings: Settings, served: Settings) -> tuple[dict[str, Router], dict[str, str]]:
    """Each route's router; and by route, why its promoted version is left out. A version that was already served and
    can no longer be opened must not stop the gateway. Raises ConfigError for a new version that can't be opened.
    """
    try:
        return open_routers(config, settings), {}
    except ConfigError:
        settings, lost = without_lost(settings, served)
        routers = open_routers(config, settings)
    for route, why in lost.items():
        log.error("route %s does without a promoted router: %s. Restore it, promote another, or roll back", route, why)
    return routers, lost


def without_lost(settings: Settings, served: Settings) -> tuple[Settings, dict[str, str]]:
    """The settings less the promoted versions and canaries that were served and can no longer be opened; and the error
    of each, by route.
    """
    routers, canaries, lost = dict(settings.routers), dict(settings.canaries), dict[str, str]()
    artefacts: list[tuple[str, str, dict[str, Any]]]
    artefacts = [(route, path, routers) for route, path in routers.items() if served.routers.get(route) == path]
    artefacts += [(name, one.artifact, canaries) for name, one in canaries.items() if served.canaries.get(name) == one]
    for route, path, entries in artefacts:
        try:
            open_router(path)
        except (ValueError, OSError) as error:
            del entries[route]
            lost[route] = str(error)
    return msgspec.structs.replace(settings, routers=routers, canaries=canaries), lost


def open_route_router(route: RouteConfig, settings: Settings) -> Router:
    """The route's router with its canary and its trial of other knobs. Raises ValueError or OSError."""
    name = settings.routers.get(route.name, route.router)
    router: Router = open_router(
        name, rules=route.rules, weights=route.weights, explore=route.explore, online=route.router == "bandit"
    )
    canary = settings.canaries.get(route.name)
    if canary:
        router = Canary(router, open_router(canary.artifact, explore=route.explore), canary.share)
    trial = settings.overlay.trials.get(route.name)
    return Canary(router, with_knobs(router, route, trial.knobs), trial.share) if trial else router


def with_knobs(router: Router, route: RouteConfig, knobs: Mapping[str, float | None]) -> KnobOverride:
    """The router with these knobs in place of the route's own; names that are no knobs are ignored."""
    base = knobs_of(route)
    stated: Any = {name: value for name, value in knobs.items() if name in KNOB_NAMES}
    return KnobOverride(router, base, replace(base, **stated))


def in_force(config: Config, settings: Settings) -> Config:
    """The configuration with the changes made at run time. Raises ConfigError where these don't fit it."""
    changed, problems = overlaid(config, settings.overlay, read_secrets(config.server.run_dir))
    if changed is None:
        raise ConfigError(problems)
    return changed


def reload(services: Services) -> list[Provider]:
    """Put new keys, settings and router versions into force for the next request; requests in flight keep the old ones.

    Returns the providers that no new request will use. Raises ConfigError or ValueError, and then only the keys have
    changed: a revoked key must stop working even if the rest can't be used.
    """
    settings = services.current.settings
    services.keyring.reload()
    config = in_force(services.current.base or services.config, settings)
    book = open_book(config, settings, services.current.in_force)
    sender = services.driver.sender
    kept = {name: provider for name, provider in sender.providers.items() if provider.config in config.providers}
    added = [provider for provider in config.providers if provider.name not in kept]
    opened = {provider.name: open_provider(provider, config.server) for provider in added}
    removed = [provider for name, provider in sender.providers.items() if name not in kept]
    if config.models != services.config.models:
        services.fleet.update(config.models)
    sender.providers = kept | opened
    services.config, services.book, services.current.in_force = config, book, settings
    services.adopt()
    services.keyring.adopt(config.auth)
    return removed


async def retire(provider: Provider) -> None:
    """Wait, at most `RETIRE_WITHIN_S`, for the provider's requests in flight, then close its connections."""
    deadline = time.monotonic() + RETIRE_WITHIN_S
    while provider.pool.in_use and time.monotonic() < deadline:  # noqa: ASYNC110  the pool has no event
        await asyncio.sleep(0.25)
    await provider.aclose()


async def close(app: App) -> None:
    """Stop background work, close every connection and end the spool's segment."""
    services = app.services
    await app.background.close()
    await app.answering.auditor.close()
    for provider in services.driver.sender.providers.values():
        await provider.aclose()
    await services.cache.close()
    await services.ledger.close()
    await services.online.close()
    services.journal.close()
    if services.tracing is not None:
        services.tracing.close()
    services.spool.close()


def pool_connections(providers: Mapping[str, Provider]) -> dict[tuple[str, ...], float]:
    """Connections by provider and state, `idle` or `in_use`."""
    counts: dict[tuple[str, ...], float] = {}
    for name, provider in providers.items():
        stats = provider.pool.stats
        counts[name, "idle"], counts[name, "in_use"] = stats.idle, stats.in_use
    return counts
