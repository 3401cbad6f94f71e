"""Figures that the control process computes in advance, in a low-priority thread, so that pages are served quickly.

Old decisions are added to the rollups first. Then, in turn, each route with new decisions or feedback is checked up:
its alarms, calibration, queue of labels and savings against blind choice; its frontier less often. A route that fails
is tried again later, and never stops the others.
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
CHECKED_EVERY_S = 30.0
MOST_SHARE = 0.005
"""Most of a core that one route's check-ups may use: a check-up of a third of a second runs once a minute."""
FRONTIER_EVERY_S = 300.0
QUEUE = 60
"""Length of the queue of decisions to label, per route."""
NICENESS = 10


@dataclass(slots=True)
class Seen:
    """State of a route's upkeep. Times are monotonic seconds."""

    mark: tuple[Any, Any] = (None, None)
    """The route's mark (see `newest`) at the last check-up."""
    checked_s: float = -1e9
    took_s: float = 0.0
    """CPU time of the last check-up."""
    frontier_mark: tuple[Any, Any] = (None, None)
    """The route's mark when its frontier was last computed."""
    frontier_s: float = -1e9
    faults: set[str] = field(default_factory=set)
    """Figures that could not be computed, so that each is logged once."""

    @property
    def every_s(self) -> float:
        """Least time between two check-ups."""
        return max(CHECKED_EVERY_S, self.took_s / MOST_SHARE)


def keep_up(services: AdminServices, ended: threading.Event) -> None:
    """Compute figures until `ended`, in this thread, whose priority is lowered so that requests go first."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    except (OSError, AttributeError):
        log.debug("the system doesn't allow lowering this thread's priority")
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
    """Add decisions from before the rollups existed to them, with pauses so that nobody waits for the database."""
    if not waiting(services.store.engine):
        services.counting = False
        return
    services.counting = True
    while not ended.is_set() and count_old(services.store.engine):
        ended.wait(0.02)


def step(services: AdminServices, seen: dict[str, Seen], now: float) -> bool:
    """Check up one route, or compute its frontier: of the routes that are due, the one that has waited longest.

    False where none is due.
    """
    due, marks = [], newest(services)
    for route in services.current.routes:
        mark = marks.get(route.name)
        if mark is None:
            continue
        one = seen.setdefault(route.name, Seen())
        if mark != one.mark and now - one.checked_s >= one.every_s:
            due.append((one.checked_s, route.name, mark))
        elif one.mark != one.frontier_mark and now - one.frontier_s >= FRONTIER_EVERY_S:
            due.append((one.frontier_s, route.name, one.mark))
    if not due:
        return False
    _, name, mark = min(due, key=lambda found: found[:2])
    one = seen[name]
    if mark != one.mark:
        one.checked_s, one.mark, begun_s = now, mark, time.thread_time()
        check_up(services, name, one)
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
"""The newest decision of each route, by one index look-up per route, however long the journal is."""


def newest(services: AdminServices) -> dict[str, tuple[Any, Any]]:
    """A mark for each route with decisions, which changes with a new decision of the route or any new feedback."""
    newest_feedback = sa.select(feedback.c.time_s).order_by(feedback.c.time_s.desc()).limit(1)
    with services.store.engine.connect() as connection:
        last = connection.execute(newest_feedback).scalar()
        return {route: (id_, last) for route, id_ in connection.execute(NEWEST).all()}


def check_up(services: AdminServices, route: str, one: Seen) -> None:
    """Compute and store all figures of a route except its frontier."""
    services.results.pop(f"log:{route}", None)
    _guarded(one, "learning", lambda: refresh_learning(services, route))
    try:
        rounds = latest_log(services, route)
    except NothingLogged:
        return
    _guarded(one, "random", lambda: keep_insight(services.store, "random", route, blind_savings(rounds)))
    _guarded(one, "certificates", lambda: watch(services, route, rounds))
    _guarded(one, "labels", lambda: keep_insight(services.store, LABELS, route, to_be_labelled(services, rounds)))


def blind_savings(rounds: Log) -> dict[str, Any]:
    """Savings against blind choice, per request that a model answered, or why they can't be estimated."""
    found = against_blind(rounds)
    if isinstance(found, Refusal):
        return {"refusal": refusal(found).model_dump(), "rounds": int(rounds.labelled.sum())}
    return {
        "saved_usd": found.saved_usd.as_dict(), "quality_gain": found.quality_gain.as_dict(), "rounds": found.rounds,
    }  # fmt: skip


def scored_ids(services: AdminServices, rounds: Log) -> set[str]:
    """Ids of the rounds' decisions that feedback has scored."""
    ids = [record.id for record in rounds.records]
    return {one for first in range(0, len(ids), 500) for one in labelled(services, ids[first : first + 500])}


def to_be_labelled(services: AdminServices, rounds: Log) -> dict[str, Any]:
    """The queue of answers to label, the most informative first."""
    scored = scored_ids(services, rounds)
    known = np.array([record.id in scored for record in rounds.records], bool)
    unscored = [record for record in rounds.records if record.id not in scored]
    data = []
    for wish in to_label(rounds, known, QUEUE):
        record = rounds.records[wish.place]
        expected = next((one.quality for one in record.candidates if one.model == record.model), None)
        data.append({
            "id": record.id, "time_s": record.time_s, "route": record.route, "model": record.model,
            "answered_model": record.answered_model, "gain": wish.gain, "why": _why(wish.information, wish.closeness),
            "quality": expected, "has_text": bool(record.prompt_text),
        })  # fmt: skip
    without_text = sum(not record.prompt_text for record in unscored)
    return {"data": data, "weighed": len(unscored), "without_text": without_text}


def _why(information: float, closeness: float) -> str:
    new = "unlike any labelled answer" if information > 0.7 else "few labelled answers are like it" if (
        information > 0.25
    ) else "like other labelled answers"  # fmt: skip
    close = "the choice was close" if closeness > 0.6 else "the choice was clear" if closeness < 0.3 else (
        "the choice was fairly close"
    )  # fmt: skip
    return f"{new}; {close}"


def _guarded(one: Seen, what: str, work: Any) -> None:
    """Compute one figure. A failure is logged once, and tried again at the next check-up; errors of the database are
    raised.
    """
    try:
        work()
        one.faults.discard(what)
    except (sa.exc.SQLAlchemyError, OSError):
        raise
    except Exception as fault:
        if what not in one.faults:
            log.warning("%s can't be computed: %s: %s", what, type(fault).__name__, fault)
        one.faults.add(what)
