"""The composition root: the one place where a worker's parts are made and put together."""

from __future__ import annotations

import random
import time
from pathlib import Path

from cache.memory import MemoryStore
from cache.store import Store
from cascade.artifact import FittedCascade, load_cascade
from gateway.api import HANDLERS
from gateway.asgi import App
from gateway.attempt import Caller, Timeouts
from gateway.budgets import open_ledger, open_limits
from gateway.config import Config, RouteConfig
from gateway.drive import Driver, Hedging
from gateway.errors import ConfigError
from gateway.fleet import Fleet
from gateway.journal.reader import Reader
from gateway.journal.spool import Spool, spool_dir
from gateway.keys import Keyring
from gateway.metrics import Metrics
from gateway.providers import Provider, open_provider
from gateway.responses import Responses
from gateway.routes import RouteBook
from gateway.services import Ids, Services
from gateway.settings import Current, Settings
from gateway.shelf import Shelf
from gateway.tracing import tracing_to
from routers.canary import Canary
from routers.features import shipped_featurizer
from routers.registry import open_router
from routers.types import Router

MAX_ANSWER_BYTES = 64 * 1024 * 1024


def build(config: Config, index: int = 0) -> App:
    """One worker's application. Raises ConfigError where a part can't be made."""
    return App(build_services(config, Current(config.server.run_dir), index), HANDLERS)


def build_services(config: Config, current: Current, index: int) -> Services:
    now, clock = time.monotonic, time.time
    fleet = Fleet(config.models)
    providers = {provider.name: open_provider(provider, config.server) for provider in config.providers}
    directory = spool_dir(config.server.run_dir)
    spool = Spool(directory)
    journal = Reader(config.storage.url, config.storage.keep_days, directory)
    draws = iter(random.Random().random, None)
    metrics = Metrics()
    metrics.watch_fleet(fleet, now)
    metrics.watch("headgate_pool_connections", lambda: pool_connections(providers))
    ledger = open_ledger(config, clock)
    metrics.watch("headgate_holds_outstanding", lambda: {(): ledger.outstanding})
    metrics.watch("headgate_overrun_usd", lambda: {(): ledger.overrun_nanousd / 1e9})
    server = config.server
    timeouts = Timeouts(server.first_byte_timeout_s, server.stall_timeout_s, server.request_timeout_s)
    caller = Caller(fleet, providers, timeouts, MAX_ANSWER_BYTES, now)
    return Services(
        config=config,
        now=now,
        clock=clock,
        draws=draws,
        ids=Ids(),
        keyring=Keyring(config.auth, lambda: current.settings.keys),
        ledger=ledger,
        limits=open_limits(ledger),
        book=open_book(config, current.settings),
        fleet=fleet,
        featurizer=shipped_featurizer,
        shelf=Shelf(open_cache(config), shipped_featurizer),
        driver=Driver(caller, draws, Hedging()),
        responses=Responses(spool, journal, clock),
        spool=spool,
        journal=journal,
        spool_dir=directory,
        metrics=metrics,
        tracing=tracing_to(config.telemetry.otlp_endpoint, {p.name: p.kind for p in config.providers}),
        current=current,
        chores=[ledger.run],
        index=index,
    )


def open_cache(config: Config) -> Store:
    """This process's memory, or the Redis that all replicas share."""
    if config.storage.redis_url:
        from cache.link import Link
        from cache.redis import RedisStore

        return RedisStore(Link(str(config.storage.redis_url)))
    return MemoryStore(config.server.cache_bytes)


def open_routers(config: Config, settings: Settings) -> dict[str, Router]:
    """Each route's router: the version that was promoted, else what the configuration names."""
    routers, problems = {}, []
    for index, route in enumerate(config.routes):
        try:
            routers[route.name] = open_route_router(route, settings)
        except (ValueError, OSError) as error:
            problems.append(f"routes[{index}].router: {error}")
    if problems:
        raise ConfigError(problems)
    return routers


def open_cascades(config: Config) -> dict[str, FittedCascade]:
    """The trained cascades of the routes that name an artefact."""
    cascades, problems = {}, []
    for index, route in enumerate(config.routes):
        if route.cascade.endswith(".safetensors"):
            try:
                cascades[route.name] = load_cascade(Path(route.cascade))
            except (ValueError, OSError) as error:
                problems.append(f"routes[{index}].cascade: {error}")
    if problems:
        raise ConfigError(problems)
    return cascades


def open_book(config: Config, settings: Settings) -> RouteBook:
    return RouteBook(config, open_routers(config, settings), open_cascades(config), settings.floors)


def open_route_router(route: RouteConfig, settings: Settings) -> Router:
    name = settings.routers.get(route.name, route.router)
    router = open_router(name, rules=route.rules, weights=route.weights, explore=route.explore)
    canary = settings.canaries.get(route.name)
    return Canary(router, open_router(canary.artifact, explore=route.explore), canary.share) if canary else router


def reload(services: Services) -> None:
    """New keys and router versions for the next request; those in flight keep what they began with."""
    config = services.config
    services.book = open_book(config, services.current.settings)
    services.keyring.reload()


async def close(app: App) -> None:
    """Stop what runs beside the requests, give back every connection and end the spool's segment."""
    services = app.services
    await app.answering.auditor.close()
    for provider in services.driver.caller.providers.values():
        await provider.aclose()
    await services.shelf.store.close()
    await services.ledger.close()
    services.journal.close()
    if services.tracing is not None:
        services.tracing.close()
    services.spool.close()


def pool_connections(providers: dict[str, Provider]) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for name, provider in providers.items():
        stats = provider.pool.stats
        found[name, "idle"], found[name, "in_use"] = stats.idle, stats.in_use
    return found
