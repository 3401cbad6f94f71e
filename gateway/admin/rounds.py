"""A route's latest decisions as rounds, and its policy, kept for some seconds: a slider asks again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from gateway.admin.services import AdminServices
from gateway.config import Config, RouteConfig
from gateway.errors import CallerError, NotFound
from gateway.journal.recent import latest_scored
from gateway.learn.dataset import Log, NothingLogged, log_of
from gateway.learn.policy import route_policy
from gateway.learn.whatif import Policy
from gateway.routes import KNOB_NAMES
from gateway.settings import stamp
from routers.features import shipped_version

ROUNDS = 2000
"""Latest decisions that figures rest on."""
LOG_S = 30.0
"""How old a kept log may be."""
FRESH_S = 3.0
"""The same, where somebody watches a trial."""
ROUTES_KEPT = 4
LEAST_TOLD = 50
KNOBS = (*KNOB_NAMES, "accept_at", "explore")
T = TypeVar("T")


def route_of(services: AdminServices, name: str) -> RouteConfig:
    """As in force. Raises NotFound."""
    found = next((one for one in services.current.routes if one.name == name), None)
    if found is None:
        raise NotFound(f"no route is called {name!r}")
    return found


def latest_log(services: AdminServices, route: str, lasts_s: float = LOG_S) -> Log:
    """The route's latest rounds, as they were so long ago at most. Raises NothingLogged."""
    return kept(services, f"log:{route}", lasts_s, lambda: _read(services, route))


def _read(services: AdminServices, route: str) -> Log:
    """Rounds that a router can read where there are enough: others came before its features, or kept none."""
    version = shipped_version()
    found = latest_scored(services.store.engine, route, limit=2 * ROUNDS, rounds=ROUNDS)
    told = [
        (record, score)
        for record, score in found
        if record.prompt_text or (record.vector and record.features_version == version)
    ]
    return log_of(told if len(told) >= LEAST_TOLD else found, limit=ROUNDS)


def policy_of(services: AdminServices, route: str, knobs: Mapping[str, float | None]) -> Policy:
    """What would decide with these knobs in place of the route's own. Raises CallerError where it can't be made."""
    stated = route_of(services, route)
    explore = knobs.get("explore")
    share = stated.explore if explore is None else explore
    version = stamp(services.run_dir)
    base = kept(
        services, f"policy:{route}:{share}:{version}", 600.0, lambda: _open(services.current, services, route, share)
    )
    changed: Any = {name: value for name, value in knobs.items() if name in KNOB_NAMES}
    return replace(base, knobs=replace(base.knobs, **changed))


def _open(config: Config, services: AdminServices, route: str, explore: float) -> Policy:
    try:
        return route_policy(config, services.store, route, explore=explore)
    except (ValueError, OSError) as error:
        raise CallerError(f"route {route!r}: its router can't be opened: {error}", status=422) from None


def kept(services: AdminServices, question: str, lasts_s: float, answer: Callable[[], T]) -> T:
    """An answer that may be so old; found once however many ask. What fails is not kept."""
    known = services.kept.get(question)
    if known is not None and time.monotonic() - known[0] < lasts_s:
        value: T = known[1]
        return value
    with services.busy.setdefault(question, threading.Lock()):
        known = services.kept.get(question)
        if known is None or time.monotonic() - known[0] >= lasts_s:
            known = (time.monotonic(), answer())
            _make_room(services, question.partition(":")[0])
            services.kept[question] = known
    services.busy.pop(question, None)
    fresh: T = known[1]
    return fresh


def forget(services: AdminServices, kind: str) -> None:
    """Answers to questions of that kind are found anew."""
    for question in [one for one in list(services.kept) if one.startswith(f"{kind}:")]:
        services.kept.pop(question, None)


def _make_room(services: AdminServices, kind: str) -> None:
    """Few logs are kept, they are large; of small answers some hundred."""
    most = {"log": ROUTES_KEPT, "policy": 16}.get(kind, 200)
    mine = sorted((at, name) for name, (at, _) in list(services.kept.items()) if name.startswith(f"{kind}:"))
    for _, name in mine[: max(0, len(mine) - most + 1)]:
        services.kept.pop(name, None)


__all__ = ["KNOBS", "ROUNDS", "NothingLogged", "kept", "latest_log", "policy_of", "route_of"]
