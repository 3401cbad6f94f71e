"""Certified thresholds for two models: what measured requests support, and what drift withdraws."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cascade.calibrate import Refusal
from cascade.promise import GRID, NEVER, FloorStatus, Measured, Promise, certify_floor, is_measured
from cascade.types import Plan, PlanError
from routers.types import Choice


def measured(n: int, seed: int, *, shift: float = 0.0, surer: float = 0.0) -> Measured:
    """Measured requests whose confidences are calibrated up to `shift`."""
    rng = np.random.default_rng(seed)
    sure = rng.beta(5, 1.2, n)
    same = (rng.random(n) < np.clip(sure + 0.02 - shift, 0, 1)).astype(float)
    return Measured(np.clip(sure + surer, 0, 1), same, np.full(n, 1e-5), np.full(n, 1e-4))


def choice(model: str = "small", router: str = "r@1") -> Choice:
    return Choice(model, 1.0, {"small": 1.0, "large": 0.0}, (), {}, "", router)


def test_thresholds_are_tried_from_safest_to_cheapest() -> None:
    """The grid starts with the threshold that never keeps the small model's answer, and has no duplicates."""
    assert GRID[0] == NEVER and list(GRID) == sorted(set(GRID), reverse=True) and 0.0 < GRID[-1] < 0.05


def test_a_floor_is_kept_over_many_worlds() -> None:
    """Over many worlds the certified threshold breaks the floor no more often than promised."""
    truth, broken, saved = measured(200_000, 0), 0, []
    for seed in range(1, 61):
        found = certify_floor(measured(600, seed), 0.95)
        assert not isinstance(found, Refusal)
        kept = truth.confidence >= found.accept_at
        broken += float(np.where(kept, truth.same, 1.0).mean()) < 0.95
        saved.append(float(kept.mean()))
    assert broken <= 3 + 2 * (60 * 0.05 * 0.95) ** 0.5 and np.mean(saved) > 0.3


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (measured(20, 1), "fewer"),
        (Measured(np.full(400, np.nan), np.ones(400), np.ones(400), np.ones(400)), "no confidence"),
        (measured(400, 1, shift=0.9), "differ"),
    ],
)
def test_insufficient_data_is_refused(rows: Measured, why: str) -> None:
    """Too few rows, no confidences, or a model that is no substitute give a reason instead of a certificate."""
    found = certify_floor(rows, 0.97)
    assert isinstance(found, Refusal) and why in found.reason


def test_too_few_rows_are_refused_with_the_number_needed() -> None:
    """With the number of rows that the refusal names there is a certificate."""
    found = certify_floor(measured(60, 2), 0.95)
    assert isinstance(found, Refusal) and found.rows_needed is not None
    assert not isinstance(certify_floor(measured(max(found.rows_needed, 200), 2), 0.95), Refusal)


def test_thresholds_lie_within_the_measured_confidences() -> None:
    """If all confidences are equal, the threshold lies just below them, and not at the bottom of the grid."""
    rows = Measured(np.full(300, 0.9), np.ones(300), np.full(300, 1e-5), np.full(300, 1e-4))
    found = certify_floor(rows, 0.95)
    assert not isinstance(found, Refusal) and 0.85 < found.accept_at <= 0.9 and found.kept_share == 1.0
    assert len(found.certificate.data_checksum) == 64


def test_contradicting_audits_withdraw_a_certificate() -> None:
    """If audits show quality below the floor, the certificate is withdrawn and old measurements no longer count."""
    standing = FloorStatus(0.95, 0.95, "large")
    standing.calibrate(measured(600, 3), 100.0, "2026-01-01")
    assert standing.state == "valid" and standing.accept_at is not None and standing.changed_s == 100.0
    assert standing.watch(measured(500, 4).confidence, measured(500, 4)) == "valid"
    assert standing.watch(np.zeros(0), measured(400, 5, shift=0.5)) == "withdrawn"
    standing.withdraw("audits", 200.0)
    assert standing.accept_at is None and standing.measured_from_s == 200.0 and standing.state == "withdrawn"


def test_shifted_confidences_only_tighten_the_threshold() -> None:
    """After a shift the threshold is computed from recent rows only, and never lowered."""
    standing = FloorStatus(0.95, 0.95, "large")
    standing.calibrate(measured(600, 3), 0.0, "")
    before = standing.accept_at
    surer = measured(900, 6, shift=0.1, surer=0.12)
    assert before is not None and standing.watch(surer.confidence, surer.last(0)) == "tighten"
    standing.tighten(surer, 10.0, "")
    assert standing.state in ("tightened", "withdrawn")
    assert standing.accept_at is None or standing.accept_at >= before


def test_the_safer_of_two_thresholds_is_in_force() -> None:
    """It is the higher one of the old threshold and the one that recent requests support."""
    rng = np.random.default_rng(0)
    standing = FloorStatus(0.95, 0.95, "large")
    standing.calibrate(measured(600, 3), 0.0, "")
    before, sure = standing.accept_at, rng.random(900)
    assert before is not None
    costs = np.full(900, 1e-5), np.full(900, 1e-4)
    standing.tighten(Measured(0.6 * sure, np.ones(900), *costs), 1.0, "")
    assert (standing.state, standing.accept_at) == ("tightened", before)
    standing.tighten(Measured(sure, (sure > 0.97).astype(float), *costs), 2.0, "")
    assert standing.accept_at is not None and standing.accept_at > max(before, 0.9)


def test_a_cheaper_certificate_needs_twice_the_rows() -> None:
    """It is not computed before; while there is no certificate, the last refusal is reported."""
    standing = FloorStatus(0.95, 0.95, "large")
    standing.calibrate(measured(60, 2), 0.0, "")
    assert standing.certified is None and "few" in standing.why and (standing.rows_needed or 0) > 60
    standing.calibrate(measured(600, 3), 1.0, "")
    assert standing.certified is not None and standing.rows_needed is None
    first = standing.certified
    right = Measured(np.full(1200, 0.9), np.ones(1200), np.full(1200, 1e-5), np.full(1200, 1e-4))
    standing.calibrate(right.last(1199), 2.0, "")
    assert standing.certified is first
    standing.calibrate(right, 3.0, "")
    assert standing.certified is not first and standing.changed_s == 3.0
    assert standing.certified.certificate.cost_usd == pytest.approx(1e-5)
    assert standing.certified.certificate.reference_cost_usd == pytest.approx(1e-4)


def test_a_standing_survives_as_json() -> None:
    """The monitor is restored from JSON, its wealth included."""
    standing = FloorStatus(0.95, 0.95, "large")
    standing.calibrate(measured(600, 3), 0.0, "")
    standing.watch(measured(50, 8).confidence, measured(50, 8))
    again = FloorStatus.from_dict(json.loads(json.dumps(standing.as_dict())))
    assert again.as_dict() == standing.as_dict()
    rows = measured(200, 9, shift=0.5)
    assert again.watch(rows.confidence, rows) == standing.watch(rows.confidence, rows)


def test_uncertified_requests_are_answered_by_the_reference() -> None:
    """Without a certificate, or with one for another router, only the reference is asked; a measured request asks both
    models.
    """
    worst = {"small": 1e-3, "large": 1e-2}

    def models(plan: Plan) -> list[str]:
        return [step.model for step in plan.steps]

    assert models(Promise("large", 0.1).plan(choice(), worst, 0.5)) == ["large"]
    asked = Promise("large", 0.1).plan(choice(), worst, 0.05)
    assert models(asked) == ["small", "large"] and is_measured(asked)
    held = Promise("large", 0.1, 0.8, "r@1")
    plan = held.plan(choice(), worst, 0.5)
    assert models(plan) == ["small", "large"] and plan.steps[0].accept_at == 0.8 and not is_measured(plan)
    assert models(held.plan(choice(router="r@2"), worst, 0.5)) == ["large"]
    assert models(held.plan(choice("large"), worst, 0.05)) == ["large"]
    with pytest.raises(PlanError, match="price"):
        held.plan(choice(), {"large": 1e-2}, 0.5)
