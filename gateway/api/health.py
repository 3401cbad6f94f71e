"""Health and metrics. Liveness checks nothing else; readiness checks only what this process needs to decide."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from gateway.asgi import Answer, Request
from gateway.errors import HeadgateError, PolicyError
from gateway.exposition import merge
from gateway.fleet import Health
from gateway.loopback import is_loopback
from gateway.reply import JSON
from gateway.services import Services
from routers.features import ENCODED
from routers.types import Knobs, Undecided

TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
SELF_TEST = "What is two plus two?"


async def healthz(request: Request, _: str) -> Answer:
    """Answer 200 while this worker runs; nothing else is checked."""
    return 200, [JSON], b'{"status":"ok"}'


async def readyz(request: Request, _: str) -> Answer:
    """Say whether this worker can serve: whether every route's router makes a decision.

    A worker stays ready while its database or Redis is unreachable, and where a promoted router could not be loaded.
    """
    broken = failing_routers(request.services)
    spool = request.services.spool
    state = {
        "status": "unready" if broken else "ready",
        "routers": broken or dict(request.services.book.lost) or "ok",
        "journal": spool.alarm or "ok",
        "breakers": [
            msgspec.to_builtins(health)
            for health in breakers(request.services)
            if health.state != "closed"
        ],
    }
    return 503 if broken else 200, [JSON], msgspec.json.encode(state)


def failing_routers(services: Services) -> dict[str, str]:
    """The routes whose router fails to decide a test query, with the reason."""
    reasons = {}
    query = services.featurizer().describe(SELF_TEST, input_tokens=8)
    for name, route in services.book.routes.items():
        if route.router is None:
            continue
        version = route.router.features_version
        if version.startswith(ENCODED):
            if services.embedder is None or services.embedder.version != version:
                reasons[name] = f"reads features {version!r}, which [embedding] does not give"
            continue
        candidates = [model.candidate for model in route.models]
        try:
            route.router.choose(query, candidates, Knobs(), 0.5)
        except (Undecided, ValueError, ArithmeticError) as error:
            reasons[name] = str(error)
    return reasons


def breakers(services: Services) -> list[Health]:
    return services.fleet.snapshot(services.now())


async def metrics(request: Request, _: str) -> Answer:
    """Metrics of all workers, for Prometheus. Needs the master key, if there is one, except from this machine.

    This worker's metrics are current; those of the others are as last published.
    """
    services = request.services
    if services.config.auth.master_key and not is_loopback(request.arrival.host) and not request.caller().admin:
        raise PolicyError("metrics need the master key")
    try:
        others = await asyncio.to_thread(published, Path(services.config.server.run_dir), services.index)
    except OSError as fault:  # sums without the other workers would fall, as if those had restarted
        raise HeadgateError(f"the metrics of the other workers can't be read: {fault.strerror}", status=503) from None
    return 200, [TEXT], merge([services.metrics.snapshot(), *others])


def published(run_dir: Path, own: int) -> list[bytes]:
    """The metrics that the other workers published last; a worker may end while they are read."""
    snapshots = []
    try:
        names = [name for name in os.listdir(run_dir) if name.startswith("worker-") and name.endswith(".metrics")]
    except FileNotFoundError:
        return []
    for name in names:
        if name != f"worker-{own}.metrics":
            with suppress(FileNotFoundError):
                snapshots.append((run_dir / name).read_bytes())
    return snapshots
