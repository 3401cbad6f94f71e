"""What the control process computes beforehand so that pages need not: in a thread of its own, gently.

Old decisions are added up first. Then, in turn, each route's learning is looked over where something has come since:
alarms, calibration, what to label, savings beside chance; its frontier more seldom. A route that fails is tried again
later and never stops the others.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa

from gateway.admin.certificates import watch
from gateway.admin.checkup import refresh_learning
from gateway.admin.frontier import refresh_frontier
from gateway.admin.labels import KIND as LABELS
from gateway.admin.labels import labelled
from gateway.admin.overview import raised
from gateway.admin.preview import refusal
from gateway.admin.rounds import latest_log
from gateway.admin.services import AdminServices
from gateway.errors import HeadgateError
from gateway.journal.backfill import count_old, waiting
from gateway.journal.durable import OutageLog
from gateway.journal.insights import keep_insight
from gateway.journal.tables import feedback
from gateway.learn.asking import to_label
from gateway.learn.blind import against_blind
from gateway.learn.dataset import Log, NothingLogged
from routers.cores import one_core
from routers.ope import Refusal

log = logging.getLogger("headgate.upkeep")

EVERY_S = 2.0
LOOKED_OVER_EVERY_S = 30.0
MOST_SHARE = 0.005
"""Of a core, spent on one route's looking over: what takes a third of a second comes every minute."""
FRONTIER_EVERY_S = 300.0
QUEUE = 60
"""Decisions that wait for a label, per route."""
NICENESS = 10


@dataclass(slots=True)
class Seen:
    """What was known of a route when it was looked over."""

    mark: tuple[Any, Any] = (None, None)
    looked_s: float = -1e9
    took_s: float = 0.0
    """CPU time of the last looking over."""
    frontier_mark: tuple[Any, Any] = (None, None)
    frontier_s: float = -1e9
    faults: set[str] = field(default_factory=set)

    @property
    def every_s(self) -> float:
        """How often it may be looked over."""
        return max(LOOKED_OVER_EVERY_S, self.took_s / MOST_SHARE)


def keep_up(services: AdminServices, ended: threading.Event) -> None:
    """Until `ended`. Yields to requests: its thread has a low priority."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    except (OSError, AttributeError):
        log.debug("the system keeps this thread's priority")
    seen: dict[str, Seen] = {}
    complaint = OutageLog(log, "figures")
    while not ended.wait(EVERY_S):
        try:
            count_waiting(services, ended)
            with one_core():
                step(services, seen, time.monotonic())
            complaint.works()
        except (sa.exc.SQLAlchemyError, HeadgateError, OSError) as fault:
            complaint.fails(fault)


def count_waiting(services: AdminServices, ended: threading.Event) -> None:
    """Adds up whatever was not; pauses between batches so that nobody waits for the database."""
    if not waiting(services.store.engine):
        services.counting = False
        return
    services.counting = True
    while not ended.is_set() and count_old(services.store.engine):
        ended.wait(0.02)


def step(services: AdminServices, seen: dict[str, Seen], now: float) -> bool:
    """One route at most: the one looked over longest ago of those that changed. False: none had to be."""
    due, marks = [], newest(services)
    for route in services.current.routes:
        mark = marks.get(route.name)
        if mark is None:
            continue
        one = seen.setdefault(route.name, Seen())
        if mark != one.mark and now - one.looked_s >= one.every_s:
            due.append((one.looked_s, route.name, mark))
        elif one.mark != one.frontier_mark and now - one.frontier_s >= FRONTIER_EVERY_S:
            due.append((one.frontier_s, route.name, one.mark))
    if not due:
        return False
    _, name, mark = min(due, key=lambda found: found[:2])
    one = seen[name]
    if mark != one.mark:
        one.looked_s, one.mark, begun_s = now, mark, time.thread_time()
        look_over(services, name, one)
        one.took_s = time.thread_time() - begun_s
    else:
        one.frontier_s, one.frontier_mark = now, mark
        _guarded(one, "frontier", lambda: refresh_frontier(services, name))
    services.alarms = len(raised(services))
    return True


NEWEST = sa.text(
    """
    WITH RECURSIVE known(route) AS (
        SELECT min(route) FROM decisions
        UNION ALL
        SELECT (SELECT min(route) FROM decisions WHERE route > known.route) FROM known WHERE known.route IS NOT NULL
    )
    SELECT route, (SELECT id FROM decisions WHERE decisions.route = known.route ORDER BY time_s DESC LIMIT 1)
    FROM known WHERE route IS NOT NULL
    """
)
"""A look into an index for each route that has decided anything, however many routes there are and however long the
journal is."""


def newest(services: AdminServices) -> dict[str, tuple[Any, Any]]:
    """Of each route with decisions what changes when one of them or any feedback comes."""
    told = sa.select(feedback.c.time_s).order_by(feedback.c.time_s.desc()).limit(1)
    with services.store.engine.connect() as connection:
        last = connection.execute(told).scalar()
        return {route: (id_, last) for route, id_ in connection.execute(NEWEST).all()}


def look_over(services: AdminServices, route: str, one: Seen) -> None:
    """Everything about a route but its frontier."""
    services.kept.pop(f"log:{route}", None)
    _guarded(one, "learning", lambda: refresh_learning(services, route))
    try:
        rounds = latest_log(services, route)
    except NothingLogged:
        return
    _guarded(one, "random", lambda: keep_insight(services.store, "random", route, beside_chance(rounds)))
    _guarded(one, "certificates", lambda: watch(services, route, rounds))
    _guarded(one, "labels", lambda: keep_insight(services.store, LABELS, route, to_be_labelled(services, rounds)))


def beside_chance(rounds: Log) -> dict[str, Any]:
    """Per request that a model answered."""
    found = against_blind(rounds)
    if isinstance(found, Refusal):
        return {"refusal": refusal(found).model_dump(), "rounds": int(rounds.labelled.sum())}
    return {
        "saved_usd": found.saved_usd.as_dict(), "quality_gain": found.quality_gain.as_dict(), "rounds": found.rounds,
    }  # fmt: skip


def said_of(services: AdminServices, rounds: Log) -> set[str]:
    """Rounds that somebody has scored, by their ids."""
    ids = [record.id for record in rounds.records]
    return {one for first in range(0, len(ids), 500) for one in labelled(services, ids[first : first + 500])}


def to_be_labelled(services: AdminServices, rounds: Log) -> dict[str, Any]:
    """Which answers to label, the most useful first; those whose text is kept here and those whose text is not."""
    said = said_of(services, rounds)
    known = np.array([record.id in said for record in rounds.records], bool)
    open_ = [record for record in rounds.records if record.id not in said]
    data = []
    for wish in to_label(rounds, known, QUEUE):
        record = rounds.records[wish.place]
        expected = next((one.quality for one in record.candidates if one.model == record.model), None)
        data.append({
            "id": record.id, "time_s": record.time_s, "route": record.route, "model": record.model,
            "answered_model": record.answered_model, "gain": wish.gain, "why": _why(wish.information, wish.closeness),
            "quality": expected, "has_text": bool(record.prompt_text),
        })  # fmt: skip
    return {"data": data, "weighed": len(open_), "without_text": sum(not record.prompt_text for record in open_)}


def _why(information: float, closeness: float) -> str:
    new = "unlike what is labelled" if information > 0.7 else "little like it is labelled" if information > 0.25 else (
        "like others that are labelled"
    )  # fmt: skip
    close = "the choice was close" if closeness > 0.6 else "the choice was clear" if closeness < 0.3 else (
        "the choice was fairly close"
    )  # fmt: skip
    return f"{new}; {close}"


def _guarded(one: Seen, what: str, work: Any) -> None:
    """A figure that can't be computed is said once, and tried again when something has come."""
    try:
        work()
        one.faults.discard(what)
    except (sa.exc.SQLAlchemyError, OSError):
        raise
    except Exception as fault:
        if what not in one.faults:
            log.warning("%s can't be computed: %s: %s", what, type(fault).__name__, fault)
        one.faults.add(what)
