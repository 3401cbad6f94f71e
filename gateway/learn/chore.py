"""The learning loop as a chore of the control process: a step for each route that learns, every `learn_every_s`.

A step may train, which takes seconds, so steps run one after the other in a thread of their own, on one replica only.
What each step did, why, and its alarms are stored beside the versions, for operators and the dashboard to read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

import sqlalchemy as sa

from gateway.config.types import Config, RouteConfig
from gateway.errors import HeadgateError
from gateway.journal.store import Store
from gateway.learn.loop import WAITS, Loop, LoopThresholds, StepReport

log = logging.getLogger("headgate.learn")

TOLD = "learn.told."
"""Prefix of the setting that holds a route's latest step."""


class LearningChore:
    """Takes every route's steps. `config` is called before each, because it may change while the process runs."""

    def __init__(self, config: Callable[[], Config], store: Store) -> None:
        self._config, self._store = config, store
        self._due_s: dict[str, float] = {}
        self._thread: threading.Thread | None = None

    def look(self, now_s: float) -> bool:
        """Start what is due, unless a step is under way. Returns at once. True: something was started."""
        if self._thread is not None and self._thread.is_alive():
            return False
        config = self._config()
        due = [route for route in config.routes if self._is_due(route, now_s)]
        if not due:
            return False
        self._thread = threading.Thread(target=self._take, args=(config, due), name="learning", daemon=True)
        self._thread.start()
        return True

    def close(self) -> None:
        """Wait for the step under way, but not for long: it changes nothing before its end."""
        if self._thread is not None:
            self._thread.join(timeout=10.0)

    def _is_due(self, route: RouteConfig, now_s: float) -> bool:
        if not route.learn_every_s or now_s < self._due_s.setdefault(route.name, now_s + route.learn_every_s):
            return False
        self._due_s[route.name] = now_s + route.learn_every_s
        return True

    def _take(self, config: Config, routes: Iterable[RouteConfig]) -> None:
        for route in routes:
            try:
                thresholds = LoopThresholds(router=route.learn_router)
                report = Loop(config, self._store, route.name, thresholds).step(time.time())
                note(self._store, route.name, report)
            except (sa.exc.SQLAlchemyError, OSError, ValueError, HeadgateError) as fault:
                log.warning("route %s can't learn now, and will try again: %s", route.name, fault)


def note(store: Store, route: str, told: StepReport) -> None:
    """Store and log a step's report where it is new, and log new alarms as warnings."""
    before = store.setting(TOLD + route) or {}
    now = {**told.as_dict(), "time_s": time.time()}
    if told.action == WAITS and _kinds(before) == _kinds(now) and before.get("action") == WAITS:
        return
    store.save_setting(TOLD + route, now, "learn")
    log.info("route %s %s", route, told)
    for kind, model in sorted(_kinds(now) - _kinds(before)):
        log.warning("route %s raises an alarm: %s%s", route, kind, f" ({model})" if model else "")


def _kinds(told: dict[str, object]) -> set[tuple[str, str]]:
    alarms = told.get("alarms")
    listed = alarms if isinstance(alarms, (list, tuple)) else ()
    return {(str(one["kind"]), str(one.get("model", ""))) for one in listed}
