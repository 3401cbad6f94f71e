"""The drift monitor raises no alarm while nothing changes, and one when something does."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest

from cascade.drift import STAKES, Bet, Drift


def test_steady_traffic_raises_no_alarm() -> None:
    """At most the stated share of long steady runs raises an alarm."""
    alarms = 0
    for seed in range(60):
        rng, drift = np.random.default_rng(seed), Drift(0.95, 0.8)
        for _ in range(1500):
            drift.observe(float(rng.beta(8, 2)))
        alarms += drift.standing != "valid"
    assert alarms <= 3


def test_a_shift_of_confidence_is_detected() -> None:
    """Confidences whose mean is clearly lower tighten the thresholds."""
    rng, drift = np.random.default_rng(1), Drift(0.95, 0.8)
    standings = [drift.observe(float(rng.beta(6, 4))) for _ in range(2000)]
    assert standings[0] == "valid" and standings[-1] == "tighten"


def test_lower_quality_withdraws_the_certificate() -> None:
    """Audits that show a breach withdraw it, and it stays withdrawn."""
    rng, drift = np.random.default_rng(2), Drift(0.95, 0.8)
    for _ in range(1500):
        drift.audit(float(rng.random() < 0.6), float(rng.random() < 0.9))
    assert drift.standing == "withdrawn"
    assert drift.observe(0.8) == "withdrawn"


def test_quality_at_the_floor_keeps_the_certificate() -> None:
    """Audits at the promised level don't withdraw it."""
    rng, withdrawn = np.random.default_rng(3), 0
    for _ in range(30):
        drift = Drift(0.95, 0.8)
        for _ in range(800):
            drift.audit(float(rng.random() < 0.86), float(rng.random() < 0.9))
        withdrawn += drift.standing == "withdrawn"
    assert withdrawn <= 2


def test_missing_evidence_is_not_counted() -> None:
    """A NaN is not counted as an observation."""
    drift = Drift(0.95, 0.8)
    drift.observe(nan)
    drift.audit(nan, 1.0)
    assert (drift.seen, drift.audited, drift.standing) == (0, 0, "valid")


def test_wealth_never_overflows() -> None:
    """A million extreme observations raise no error."""
    drift = Drift(1.0, 0.0)
    for _ in range(5000):
        drift.observe(1.0)
        drift.audit(0.0, 1.0)
    assert drift.standing == "withdrawn"


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("null", [0.2, 0.5, 0.9])
def test_a_bet_is_fair(null: float, above: bool) -> None:
    """If the mean is as stated, the expected wealth stays one; the worst observation loses the stakes and no more."""

    def after(x: float) -> float:
        bet = Bet(null, above)
        bet.see(x)
        return bet.wealth

    assert null * after(1.0) + (1 - null) * after(0.0) == pytest.approx(1.0)
    assert after(0.0 if above else 1.0) == pytest.approx(1 - np.mean(STAKES))


def test_observations_and_audits_are_counted() -> None:
    """An audit needs both scores; a confidence outside [0, 1] is clipped."""
    one, other = Drift(0.95, 0.8), Drift(0.95, 0.8)
    for p, q in ((1.0, 1.5), (0.0, -2.0)):
        one.observe(p)
        other.observe(q)
    assert one.as_dict() == other.as_dict() and one.seen == 2
    one.audit(1.0, nan)
    one.audit(1.0, 1.0)
    assert one.audited == 1
