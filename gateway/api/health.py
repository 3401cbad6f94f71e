"""Health and metrics. Liveness asks nobody; readiness asks what this process needs to decide, and nothing else."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from gateway.asgi import Answer, Request
from gateway.errors import HeadgateError, PolicyError
from gateway.fleet import Health
from gateway.keys import is_loopback
from gateway.metrics import merge
from gateway.reply import JSON
from gateway.services import Services
from routers.features import ENCODED
from routers.types import Knobs, Undecided

TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
SELF_TEST = "What is two plus two?"


async def healthz(request: Request, _: str) -> Answer:
    """Answer 200 while this worker lives; nothing else is asked."""
    return 200, [JSON], b'{"status":"ok"}'


async def readyz(request: Request, _: str) -> Answer:
    """Say whether this worker can serve: every route's router makes a decision.

    One whose database or Redis is away serves on, and so does one that has lost a promoted router.
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
    """Routes whose router can't decide a harmless question, and why."""
    found = {}
    query = services.featurizer().describe(SELF_TEST, input_tokens=8)
    for name, route in services.book.routes.items():
        if route.router is None:
            continue
        version = route.router.features_version
        if version.startswith(ENCODED):
            if services.embedder is None or services.embedder.version != version:
                found[name] = f"reads features {version!r}, which [embedding] does not give"
            continue
        candidates = [model.candidate for model in route.models]
        try:
            route.router.choose(query, candidates, Knobs(), 0.5)
        except (Undecided, ValueError, ArithmeticError) as error:
            found[name] = str(error)
    return found


def breakers(services: Services) -> list[Health]:
    return services.fleet.snapshot(services.now())


async def metrics(request: Request, _: str) -> Answer:
    """Metrics of all workers, for Prometheus. Needs the master key, if there is one, unless asked from this machine.

    This worker tells of now, the others as they last said.
    """
    services = request.services
    if services.config.auth.master_key and not is_loopback(request.arrival.host) and not request.caller().admin:
        raise PolicyError("metrics are for the master key only")
    try:
        others = await asyncio.to_thread(published, Path(services.config.server.run_dir), services.index)
    except OSError as fault:  # without the others' the sums would fall, as if those had begun anew
        raise HeadgateError(f"what the other workers said can't be read: {fault.strerror}", status=503) from None
    return 200, [TEXT], merge([services.metrics.snapshot(), *others])


def published(run_dir: Path, own: int) -> list[bytes]:
    """What the other workers last said of themselves; one may end meanwhile."""
    found = []
    try:
        names = [one for one in os.listdir(run_dir) if one.startswith("worker-") and one.endswith(".metrics")]
    except FileNotFoundError:
        return []
    for name in names:
        if name != f"worker-{own}.metrics":
            with suppress(FileNotFoundError):
                found.append((run_dir / name).read_bytes())
    return found
