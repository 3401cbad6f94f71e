"""Keeps the promises of certified cascades: certifies, publishes, watches, tightens and withdraws them.

Everything is read from the journal, and the state is a setting in the store, so a step may run in any process at any
time. A measured request is a decision that both models answered; the comparison of the two is feedback with the source
`reference`. Only rounds of the present router count.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from math import nan
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa

from cascade.promise import NEVER, FloorStatus, Measured
from gateway.config.settings import FloorSetting, Settings, change_settings
from gateway.config.types import Config, RouteConfig
from gateway.journal.recent import joined_to_route
from gateway.journal.record import AttemptRecord, DecisionRecord
from gateway.journal.store import Store
from gateway.journal.tables import decisions, feedback
from routers.intervals import wilson_interval

LATE_S = 2.0
"""Seconds within which records may still arrive from the workers' spools; younger ones are not read."""
MOST_ROWS = 20_000
READ_ROWS = 500
SAVED_EVERY_S = 3600.0
_decode = msgspec.json.Decoder(DecisionRecord, strict=False).decode


@dataclass(frozen=True, slots=True)
class Round:
    """A decision of the route whose first model was asked."""

    time_s: float
    router: str
    confidence: float
    """NaN where no confidence was read, or the first model failed."""
    kept: bool
    """Whether the answer came from another model than the reference; false where the request failed."""
    cost_usd: float


def certified_routes(config: Config) -> list[RouteConfig]:
    return [route for route in config.routes if route.cascade == "certified"]


class Promises:
    """The promises of all certified routes. The state of monitoring is saved once an hour only, because it can be read
    again from the journal.
    """

    def __init__(self, config: Config, store: Store) -> None:
        self.config = config
        self.keepers = [Keeper(config, store, route) for route in certified_routes(config)]

    def step(self, now_s: float) -> None:
        """One step for every certified route."""
        for keeper in self.keepers:
            keeper.step(now_s)


def standings(config: Config, store: Store) -> list[dict[str, Any]]:
    """The state of every certified route as JSON, without a step, for the admin API and the command."""
    return [Keeper(config, store, route).told() for route in certified_routes(config)]


class Keeper:
    """Keeps the promise of one route."""

    def __init__(self, config: Config, store: Store, route: RouteConfig) -> None:
        self.config, self.store, self.route = config, store, route
        assert route.min_quality is not None
        self.reference = route.reference or route.models[-1]
        remembered = store.setting(self.name) or {}
        self.standing = self._restored(remembered)
        self.router: str = remembered.get("router", "")
        self.seen_s: float = remembered.get("seen_s", 0.0)
        """Unix time up to which rounds were shown to the drift monitor."""
        self._saved_s = 0.0
        self._compared: dict[str, tuple[float, ...] | None] = {}
        """The `_answers` of measured rounds, by decision id."""

    @property
    def name(self) -> str:
        """Name of the setting with the state."""
        return f"floor.{self.route.name}"

    def step(self, now_s: float) -> None:
        """Read what came since the last step; then certify, tighten or withdraw, at most one of these."""
        until_s = now_s - LATE_S
        before = self._promised()
        router = self._serving()
        if self.standing.certified is not None and router not in ("", self.router):
            self.standing.withdraw(f"the router changed from {self.router} to {router}", now_s)
            self.router = router
        else:
            self.router = router or self.router
            self._look(now_s, until_s)
        if self._promised() != before or now_s - self._saved_s > SAVED_EVERY_S:
            self._remember()
            self._saved_s = now_s
        self._publish()

    def _look(self, now_s: float, until_s: float) -> None:
        issued = datetime.fromtimestamp(now_s, UTC).date().isoformat()
        measured = self.measured(self.standing.measured_from_s, until_s)
        said = self.standing.watch(self._confidences(until_s), self.measured(self.seen_s, until_s))
        self.seen_s = until_s
        if said == "withdrawn":
            self.standing.withdraw("audited quality fell below the floor", now_s)
        elif said == "tighten":
            self.standing.tighten(measured.last(max(200, len(measured) // 2)), now_s, issued)
        elif self.standing.state != "tightened":
            self.standing.calibrate(measured, now_s, issued)

    def told(self) -> dict[str, Any]:
        """The promise, its evidence, and its results so far, as JSON."""
        standing, floor = self.standing, self.standing.certified
        return {
            "route": self.route.name,
            "state": standing.state,
            "why": standing.why,
            "floor": standing.floor,
            "confidence": standing.confidence,
            "reference": standing.reference,
            "accept_at": standing.accept_at,
            "router": self.router,
            "since_s": standing.changed_s or None,
            "rows": standing.rows,
            "rows_needed": standing.rows_needed,
            "certificate": floor.as_dict()["certificate"] if floor is not None else None,
            "kept_share": floor.kept_share if floor is not None else None,
            "coverage": self.coverage() if floor is not None else None,
            "assumption": floor.certificate.assumption if floor is not None else None,
        }

    def coverage(self) -> dict[str, Any]:
        """The results of the promise since its state last changed: the answers kept, and the quality of measured
        rounds. Only the latest 20,000 requests (since `counted_since_s`) and comparisons are counted.
        """
        since_s, accept_at = self.standing.changed_s, self.standing.accept_at
        rounds, counted_since_s = self._rounds(since_s, float("inf"))
        measured = self.measured(since_s, float("inf"))
        with np.errstate(invalid="ignore"):
            held = np.where(measured.confidence >= (accept_at or NEVER), measured.same, 1.0)
        right, n = float(held.sum()), len(held)
        share = wilson_interval(right, n) if n else None
        return {
            "counted_since_s": counted_since_s,
            "requests": len(rounds),
            "kept": sum(one.kept for one in rounds),
            "measured": n,
            "quality_share": share.value if share else None,
            "quality_low": share.low if share else None,
            "quality_high": share.high if share else None,
            "cost_usd": sum(one.cost_usd for one in rounds),
            "reference_usd": float(measured.reference_usd.mean()) * len(rounds) if n else None,
        }

    # -- what the journal says

    def measured(self, since_s: float, until_s: float) -> Measured:
        """The comparisons in that time of rounds that the present router decided, oldest first."""
        query = (
            sa.select(decisions.c.id, feedback.c.label, decisions.c.router)
            .join_from(feedback, decisions, feedback.c.decision_id == decisions.c.id)
            .where(feedback.c.source == "reference", joined_to_route(self.store.engine, self.route.name))
            .where(feedback.c.time_s >= since_s, feedback.c.time_s < until_s)
            .order_by(feedback.c.time_s.desc(), feedback.c.id)
            .limit(MOST_ROWS)
        )
        with self.store.engine.connect() as connection:
            found = connection.execute(query).all()[::-1]
            same = [(row.id, float(row.label == "same")) for row in found if row.router == self.router]
            self._read(connection, dict(same))
        rows = [(one[0], right, *one[1:]) for id, right in same if (one := self._compared.get(id))]
        return Measured(*np.array(rows, np.float64).reshape(-1, 4).T)

    def _read(self, connection: sa.Connection, ids: Collection[str]) -> None:
        """Read those of the decisions that were not read before: there may be 20,000, and a step every 15 seconds."""
        if len(self._compared) > 2 * MOST_ROWS:
            self._compared = {id: one for id, one in self._compared.items() if id in ids}
        new = [id for id in ids if id not in self._compared]
        for first in range(0, len(new), READ_ROWS):
            few = decisions.c.id.in_(new[first : first + READ_ROWS])
            for id, payload in connection.execute(sa.select(decisions.c.id, decisions.c.payload).where(few)):
                self._compared[id] = self._answers(_decode(payload))

    def _answers(self, record: DecisionRecord) -> tuple[float, ...] | None:
        """Confidence and cost of the first model's answer, and cost of the reference's; None where one is missing."""
        first, last = record.answer_of(record.plan[0]), record.answer_of(self.reference)
        if first is None or last is None:
            return None
        return _confidence(first), first.cost_nanousd / 1e9, last.cost_nanousd / 1e9

    def _rounds(self, since_s: float, until_s: float) -> tuple[list[Round], float]:
        """The rounds of the latest decisions in that time, oldest first, and the time since which they are complete,
        which is later than `since_s` where there are more than `MOST_ROWS` decisions.
        """
        query = (
            sa.select(decisions.c.time_s, decisions.c.payload)
            .where(decisions.c.route == self.route.name)
            .where(decisions.c.time_s >= since_s, decisions.c.time_s < until_s)
            .order_by(decisions.c.time_s.desc())
            .limit(MOST_ROWS)
        )
        found, looked_at, oldest_s = list[Round](), 0, since_s
        with self.store.engine.connect() as connection:
            for time_s, payload in connection.execute(query):
                looked_at, oldest_s = looked_at + 1, time_s
                record = _decode(payload)
                if record.attempts and not record.from_cache and record.plan:
                    first = record.answer_of(record.plan[0]) if len(record.plan) > 1 else None
                    confidence = _confidence(first) if first is not None else nan
                    kept = record.answered_model not in ("", self.reference)
                    found.append(Round(record.time_s, record.router, confidence, kept, record.cost_nanousd / 1e9))
        return found[::-1], oldest_s if looked_at == MOST_ROWS else since_s

    def _confidences(self, until_s: float) -> np.ndarray[Any, Any]:
        since_s = max(self.seen_s, self.standing.changed_s)
        rounds, _ = self._rounds(since_s, until_s)
        return np.array([one.confidence for one in rounds if one.router == self.router])

    def _serving(self) -> str:
        """Label of the router of the latest decision; empty where there is none."""
        query = (
            sa.select(decisions.c.router)
            .where(decisions.c.route == self.route.name, decisions.c.router != "")
            .order_by(decisions.c.time_s.desc())
            .limit(1)
        )
        with self.store.engine.connect() as connection:
            return str(connection.execute(query).scalar() or "")

    # -- what is remembered

    def _restored(self, remembered: dict[str, Any]) -> FloorStatus:
        """The saved state, or a new one where the configuration promises something else now."""
        assert self.route.min_quality is not None
        fresh = FloorStatus(self.route.min_quality, self.route.certainty, self.reference)
        if "standing" not in remembered:
            return fresh
        old = FloorStatus.from_dict(remembered["standing"])
        same = (old.floor, old.confidence, old.reference) == (fresh.floor, fresh.confidence, fresh.reference)
        return old if same else fresh

    def _promised(self) -> dict[str, Any]:
        """The part of the state that is saved at each change; the rest can be read again."""
        standing = self.standing.as_dict()
        return {**standing, "drift": None, "rows": 0, "router": self.router}

    def _remember(self) -> None:
        told = {"standing": self.standing.as_dict(), "router": self.router, "seen_s": self.seen_s}
        self.store.save_setting(self.name, told, "learn")

    def _publish(self) -> None:
        """Write the threshold to the settings, which workers read within a second."""
        name, accept_at = self.route.name, self.standing.accept_at

        def change(settings: Settings) -> Settings:
            floors = {route: floor for route, floor in settings.floors.items() if route != name}
            if accept_at is not None:
                floors[name] = FloorSetting(accept_at, self.router)
            return msgspec.structs.replace(settings, floors=floors)

        change_settings(self.config.server.run_dir, change)


def _confidence(answer: AttemptRecord) -> float:
    told = answer.evidence.confidence if answer.evidence is not None else None
    return nan if told is None else told
