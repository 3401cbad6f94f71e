"""A quality floor for a two-model climb, certified on requests that both models answered.

The family is every threshold of a fixed grid, from "never keep the first answer" down, so that its order owes nothing
to the rows. Rows come in the order of time and the test is a gambler's wealth (cascade.calibrate.betting_p), which may
be read after any number of them: asking again as rows come in costs no confidence. Quality here is agreement with the
reference's own answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from cascade.calibrate import Certificate, Family, Matrix, Refusal, certify, rows_for
from cascade.drift import Drift
from cascade.types import Limits, Plan, Step, price_of
from routers.types import Choice

NEVER = 2.0
"""A threshold above every confidence."""
GRID = (NEVER, *(1.0 - 0.5 * 0.82**k for k in range(36, -1, -1)), *(0.5 - 0.02 * k for k in range(1, 25)))
"""Thresholds tried, safest first: close together near one, where most of a model's answers lie."""
ASSUMPTION = (
    "requests are exchangeable with the measured ones; quality is agreement with the reference's answer, and an answer "
    "that fails is not counted"
)
WORTH_KEEPING = 0.02
"""A threshold that keeps a smaller share of first answers saves nothing."""


@dataclass(frozen=True, slots=True)
class Measured:
    """n requests that both models answered, in the order of time; all arrays (n,)."""

    confidence: Matrix
    """Confidence of the first answer, in [0, 1]; NaN where nothing was read, and then no threshold keeps it."""
    same: Matrix
    """1 where the first answer agreed with the reference's, else 0."""
    first_usd: Matrix
    reference_usd: Matrix

    def __len__(self) -> int:
        return len(self.same)

    def checksum(self) -> str:
        """Checksum of all four columns."""
        digest = hashlib.sha256()
        for column in (self.confidence, self.same, self.first_usd, self.reference_usd):
            digest.update(np.ascontiguousarray(column, "<f8").tobytes())
        return digest.hexdigest()

    def last(self, n: int) -> Measured:
        first = max(0, len(self) - n)
        return Measured(*(getattr(self, name)[first:] for name in ("confidence", "same", "first_usd", "reference_usd")))


@dataclass(frozen=True, slots=True)
class Floor:
    """A certificate and the threshold that it certifies."""

    certificate: Certificate
    accept_at: float
    kept_share: float
    """Share of first answers that are kept, on the measured requests."""
    mean_confidence: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Floor:
        rest = {name: value for name, value in values.items() if name != "certificate"}
        return cls(Certificate(**values["certificate"]), **rest)

    def drift(self) -> Drift:
        """A monitor that has seen nothing yet."""
        return Drift(self.certificate.floor, self.mean_confidence)


def family_of(measured: Measured, reference: str) -> Family:
    """What every threshold of the grid would have scored and cost on those requests."""
    with np.errstate(invalid="ignore"):
        kept = measured.confidence[None, :] >= np.array(GRID)[:, None]
    return Family(
        np.where(kept, measured.same[None, :], 1.0),
        measured.first_usd[None, :] + np.where(kept, 0.0, measured.reference_usd[None, :]),
        np.ones(len(measured)),
        measured.reference_usd,
        reference,
    )


def certify_floor(
    measured: Measured, floor: float, confidence: float = 0.95, *, reference: str = "", issued: str = ""
) -> Floor | Refusal:
    """The least threshold that keeps the floor at that confidence, or why there is none that saves anything.

    ValueError for a floor outside (0, 1] or a confidence outside (0, 1).
    """
    family = family_of(measured, reference)
    found = certify(family, floor, confidence, issued=issued, data_checksum=measured.checksum(), mixed=False)
    if isinstance(found, Refusal):
        return found
    accept_at = _highest_alike(measured, found.rule)
    kept = _kept_share(measured, accept_at)
    if kept < WORTH_KEEPING:
        return _nothing_saved(measured, family, floor, confidence, found.rule)
    known = measured.confidence[np.isfinite(measured.confidence)]
    return Floor(replace(found, assumption=ASSUMPTION), accept_at, kept, float(known.mean()))


def _highest_alike(measured: Measured, rule: int) -> float:
    """The highest threshold that keeps the very answers of this rule: none is promised that was never seen."""
    share = _kept_share(measured, GRID[rule])
    return next(least for least in GRID[: rule + 1] if _kept_share(measured, least) == share)


def _kept_share(measured: Measured, accept_at: float) -> float:
    with np.errstate(invalid="ignore"):
        return float((measured.confidence >= accept_at).mean()) if len(measured) else 0.0


def _nothing_saved(measured: Measured, family: Family, floor: float, confidence: float, passed: int) -> Refusal:
    """What it would take to tell the first threshold that keeps enough from the floor."""
    rule = next((k for k in range(passed, len(GRID)) if _kept_share(measured, GRID[k]) >= WORTH_KEEPING), None)
    if rule is None:
        return Refusal("the first model's answers show no confidence to go by", len(measured))
    needed = rows_for(family.scores[rule] - floor, floor, confidence)
    if needed is None:
        return Refusal("even its surest first answers differ from the reference's too often", len(measured))
    return Refusal("too few measured requests to keep any first answer", len(measured), max(needed, len(measured) + 1))


@dataclass(slots=True)
class FloorStatus:
    """State of one route's promise; all that must be remembered, as plain values."""

    floor: float
    confidence: float
    reference: str
    state: str = "collecting"
    """collecting: the reference answers | valid | tightened: a safer threshold, recalibrated | withdrawn: drift was
    found, the reference answers until new measurements carry a certificate"""
    why: str = ""
    rows: int = 0
    rows_needed: int | None = None
    certified: Floor | None = None
    changed_s: float = 0.0
    """Since when it is in this state."""
    measured_from_s: float = 0.0
    """Measurements before this moment don't count: the world has changed since."""
    drift: Drift | None = field(default=None, repr=False)

    @property
    def accept_at(self) -> float | None:
        return self.certified.accept_at if self.certified is not None else None

    def calibrate(self, measured: Measured, now_s: float, issued: str) -> None:
        """A first certificate; later a cheaper one, when twice as many rows carry it."""
        self.rows = len(measured)
        if self.certified is not None and self.rows < 2 * self.certified.certificate.rows:
            return
        found = certify_floor(measured, self.floor, self.confidence, reference=self.reference, issued=issued)
        if isinstance(found, Refusal):
            if self.certified is None:
                self.rows_needed = found.rows_needed
                self.why = found.reason if self.state == "collecting" else self.why
            return
        if self.certified is None or found.certificate.cost_usd < 0.98 * self.certified.certificate.cost_usd:
            self._take(found, "valid", "", now_s)

    def watch(self, confidences: Matrix, measured: Measured) -> str:
        """Let the monitor see requests and measurements that came since; what it says now."""
        if self.certified is None:
            return "valid"
        if self.drift is None:
            self.drift = self.certified.drift()
        for p in confidences.tolist():
            self.drift.observe(p)
        for p, same in zip(measured.confidence.tolist(), measured.same.tolist(), strict=True):
            self.drift.audit(same if p >= self.certified.accept_at else 1.0, 1.0)
        return self.drift.standing

    def tighten(self, recent: Measured, now_s: float, issued: str) -> None:
        """Confidences have shifted: a threshold certified on recent requests alone, no laxer than the one in force."""
        found = certify_floor(recent, self.floor, self.confidence, reference=self.reference, issued=issued)
        if isinstance(found, Refusal) or self.certified is None:
            self.withdraw("confidences have shifted, and recent requests are too few to certify a threshold", now_s)
            return
        safer = max(found.accept_at, self.certified.accept_at)
        self._take(replace(found, accept_at=safer), "tightened", "confidences have shifted since calibration", now_s)

    def withdraw(self, why: str, now_s: float) -> None:
        """The reference answers again; what was measured before no longer counts."""
        self.certified, self.drift = None, None
        self.state, self.why, self.rows, self.rows_needed = "withdrawn", why, 0, None
        self.changed_s = self.measured_from_s = now_s

    def _take(self, found: Floor, state: str, why: str, now_s: float) -> None:
        self.certified, self.drift = found, found.drift()
        self.state, self.why, self.changed_s, self.rows_needed = state, why, now_s, None

    def as_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in _PLAIN}
        values["certified"] = self.certified.as_dict() if self.certified is not None else None
        values["drift"] = self.drift.as_dict() if self.drift is not None else None
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FloorStatus:
        standing = cls(**{name: values[name] for name in _PLAIN})
        if values["certified"] is not None:
            standing.certified = Floor.from_dict(values["certified"])
            standing.drift = Drift.from_dict(values["drift"]) if values["drift"] is not None else None
        return standing


_PLAIN = (
    "floor", "confidence", "reference", "state", "why", "rows", "rows_needed", "changed_s", "measured_from_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Promise:
    """What a route may do now: which threshold is certified, and how often it measures."""

    reference: str
    measured_share: float
    """Share of requests that both models answer: the reference's answer is given, and the first one's is compared with
    it.
    """
    accept_at: float | None = None
    """None: nothing is certified, the reference answers."""
    router: str = ""
    """The router's label that the certificate speaks of; with another nothing is certified."""

    def plan(
        self,
        choice: Choice,
        worst_cost_usd: Mapping[str, float],
        draw: float,
        *,
        limits: Limits | None = None,
        retries: int = 1,
        fallbacks: Sequence[str] = (),
        speculates: bool = False,
    ) -> Plan:
        """The first model while it is certified or measured, then the reference; else the reference alone.

        `draw`, in [0, 1), decides whether this request is measured.
        """
        reference = self.reference if self.reference in worst_cost_usd else choice.model
        last = Step(reference, worst_cost_usd=price_of(reference, worst_cost_usd))
        steps: tuple[Step, ...] = (last,)
        if choice.model != reference and (least := self._least(choice, draw)) is not None:
            first = Step(choice.model, least, price_of(choice.model, worst_cost_usd), reads_confidence=True)
            steps = (first, last)
        tried = {step.model for step in steps}
        spare = [m for m in dict.fromkeys((*choice.ranked, *fallbacks)) if m not in tried and m in worst_cost_usd]
        others = tuple(Step(m, worst_cost_usd=worst_cost_usd[m]) for m in spare)
        return Plan(steps, others, limits or Limits(), retries, speculates=speculates)

    def _least(self, choice: Choice, draw: float) -> float | None:
        if draw < self.measured_share:
            return NEVER
        return self.accept_at if self.router in ("", choice.router) else None


def is_measured(plan: Plan) -> bool:
    """Whether the plan measures: both models answer, whatever the confidence of the first."""
    return len(plan.steps) == 2 and plan.steps[0].accept_at == NEVER
