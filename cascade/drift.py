"""Watches whether a certificate still holds for today's traffic.

Two tests by betting run on the requests: one, on audited requests, against the claim that quality is above the floor;
one, on every request, against the claim that confidences average what they did at calibration. While nothing has
changed, the wealth of either bet exceeds 1/alarm with probability `alarm` at most, however long it runs (Ville's
inequality), so the monitor may be read at any time. It decides nothing about single requests; it tightens or withdraws
the certificate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, isfinite, log1p
from typing import Any, Literal

STAKES = (0.05, 0.2, 0.6)
"""Stakes as shares of the largest safe one. The wealth is the mean over them, so that small and large shifts are both
found.
"""
LOG_CAP = 500.0

DriftSignal = Literal["valid", "tighten", "withdrawn"]


@dataclass(slots=True)
class Bet:
    """Wealth of betting that the mean of numbers in [0, 1] is above (or below) `null`."""

    null: float
    above: bool
    logs: list[float] = field(default_factory=lambda: [0.0] * len(STAKES))

    def see(self, x: float) -> None:
        edge = x - self.null if self.above else self.null - x
        largest = 1.0 / max(self.null if self.above else 1.0 - self.null, 1e-6)
        for i, share in enumerate(STAKES):
            self.logs[i] = min(self.logs[i] + log1p(max(share * largest * edge, -0.999999)), LOG_CAP)

    @property
    def wealth(self) -> float:
        return sum(exp(one) for one in self.logs) / len(self.logs)


@dataclass(slots=True)
class Drift:
    """State of a certificate in use."""

    floor: float
    mean_confidence: float
    """Mean confidence of the calibration rows."""
    tolerance: float = 0.03
    """Shift of the mean confidence that changes nothing yet."""
    alarm: float = 0.01
    seen: int = 0
    audited: int = 0
    _quality: Bet = field(init=False)
    _shift: tuple[Bet, Bet] = field(init=False)
    _standing: DriftSignal = "valid"

    def __post_init__(self) -> None:
        self._quality = Bet(self.floor / (1.0 + self.floor), above=False)
        high = min(self.mean_confidence + self.tolerance, 1.0)
        low = max(self.mean_confidence - self.tolerance, 0.0)
        self._shift = (Bet(high, above=True), Bet(low, above=False))

    def observe(self, confidence: float) -> DriftSignal:
        """Take in one request's confidence; a missing one is not counted."""
        if isfinite(confidence):
            self.seen += 1
            for bet in self._shift:
                bet.see(min(max(confidence, 0.0), 1.0))
            if max(bet.wealth for bet in self._shift) >= 2.0 / self.alarm and self._standing == "valid":
                self._standing = "tighten"
        return self._standing

    def audit(self, score: float, reference_score: float) -> DriftSignal:
        """Take in the scores of one request that both the rule and the reference answered."""
        if isfinite(score) and isfinite(reference_score):
            self.audited += 1
            self._quality.see((score - self.floor * reference_score + self.floor) / (1.0 + self.floor))
            if self._quality.wealth >= 1.0 / self.alarm:
                self._standing = "withdrawn"
        return self._standing

    def as_dict(self) -> dict[str, Any]:
        """Plain values, from which `from_dict` makes the same monitor again."""
        values: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN}
        values["standing"] = self._standing
        values["logs"] = [list(bet.logs) for bet in (self._quality, *self._shift)]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Drift:
        drift = cls(**{name: values[name] for name in _PLAIN})
        drift._standing = values["standing"]
        for bet, logs in zip((drift._quality, *drift._shift), values["logs"], strict=True):
            bet.logs = [float(log) for log in logs]
        return drift

    @property
    def standing(self) -> DriftSignal:
        """`tighten`: take a safer rule and recalibrate; `withdrawn`: answer by the reference alone."""
        return self._standing


_PLAIN = ("floor", "mean_confidence", "tolerance", "alarm", "seen", "audited")
