"""A route's latest decisions as rounds for off-policy evaluation, and its policy. Both are cached for some seconds,
because a slider on the dashboard requests them again and again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from gateway.admin.services import AdminServices
from gateway.config.settings import stamp
from gateway.config.types import Config, RouteConfig
from gateway.errors import CallerError, NotFound
from gateway.journal.recent import latest_scored
from gateway.learn.dataset import Log, NothingLogged, log_of
from gateway.learn.policy import route_policy
from gateway.learn.whatif import Policy
from gateway.routes import KNOB_NAMES
from routers.features import shipped_version

ROUNDS = 2000
"""Number of latest decisions that figures are computed from."""
LOG_S = 30.0
"""How old a cached log may be, in seconds."""
FRESH_S = 3.0
"""How old a cached log may be where it is used to watch a trial, in seconds."""
LOGS_CACHED = 4
LEAST_READABLE = 50
"""Fewest decisions with readable features for which all others are left out."""
KNOBS = (*KNOB_NAMES, "accept_at", "explore")
T = TypeVar("T")


def route_of(services: AdminServices, name: str) -> RouteConfig:
    """The route's configuration in force. Raises NotFound."""
    found = next((one for one in services.current.routes if one.name == name), None)
    if found is None:
        raise NotFound(f"no route is called {name!r}")
    return found


def latest_log(services: AdminServices, route: str, max_age_s: float = LOG_S) -> Log:
    """The route's latest rounds, at most `max_age_s` old. Raises NothingLogged."""
    return cached(services, f"log:{route}", max_age_s, lambda: _read(services, route))


def _read(services: AdminServices, route: str) -> Log:
    """The rounds whose features a router can read, or all of them where those are fewer than LEAST_READABLE."""
    version = shipped_version()
    found = latest_scored(services.store.engine, route, limit=2 * ROUNDS, rounds=ROUNDS)
    readable = [
        (record, score)
        for record, score in found
        if record.prompt_text or (record.vector and record.features_version == version)
    ]
    return log_of(readable if len(readable) >= LEAST_READABLE else found, limit=ROUNDS)


def policy_of(services: AdminServices, route: str, knobs: Mapping[str, float | None]) -> Policy:
    """The route's policy with these knobs instead of its own. Raises NotFound, or CallerError where its router can't be
    opened.
    """
    stated = route_of(services, route)
    explore = knobs.get("explore")
    share = stated.explore if explore is None else explore
    version = stamp(services.run_dir)
    base = cached(
        services, f"policy:{route}:{share}:{version}", 600.0, lambda: _open(services.current, services, route, share)
    )
    changed: Any = {name: value for name, value in knobs.items() if name in KNOB_NAMES}
    return replace(base, knobs=replace(base.knobs, **changed))


def _open(config: Config, services: AdminServices, route: str, explore: float) -> Policy:
    try:
        return route_policy(config, services.store, route, explore=explore)
    except (ValueError, OSError) as error:
        raise CallerError(f"route {route!r}: its router can't be opened: {error}", status=422) from None


def cached(services: AdminServices, key: str, max_age_s: float, compute: Callable[[], T]) -> T:
    """The result for a key, at most `max_age_s` old. Threads that need it at the same time compute it once.

    A key is `kind:...`; the number of cached results is limited per kind. Errors are not cached.
    """
    known = services.results.get(key)
    if known is not None and time.monotonic() - known[0] < max_age_s:
        value: T = known[1]
        return value
    with services.locks.setdefault(key, threading.Lock()):
        known = services.results.get(key)
        if known is None or time.monotonic() - known[0] >= max_age_s:
            known = (time.monotonic(), compute())
            _make_room(services, key.partition(":")[0])
            services.results[key] = known
    services.locks.pop(key, None)
    fresh: T = known[1]
    return fresh


def forget(services: AdminServices, kind: str) -> None:
    """Drop the cached results of one kind."""
    for key in [one for one in list(services.results) if one.startswith(f"{kind}:")]:
        services.results.pop(key, None)


def _make_room(services: AdminServices, kind: str) -> None:
    """Drop the oldest results of a kind, so that one more fits. Logs are large, so only a few are cached."""
    most = {"log": LOGS_CACHED, "policy": 16}.get(kind, 200)
    mine = sorted((at, key) for key, (at, _) in list(services.results.items()) if key.startswith(f"{kind}:"))
    for _, key in mine[: max(0, len(mine) - most + 1)]:
        services.results.pop(key, None)


__all__ = ["KNOBS", "ROUNDS", "NothingLogged", "cached", "latest_log", "policy_of", "route_of"]
