"""Risk-coverage curves of answers whose curve is known."""

from __future__ import annotations

import numpy as np
import pytest

from cascade.evaluate import REPORTED_RISKS, evaluate
from cascade.risk_coverage import CALIBRATED, HINDSIGHT, RAW, Given, figures, risk_coverage
from cascade.rows import TrainingSettings
from tests.cascade.worlds import logged

RIGHT = np.array([1.0, 1.0, 0.0, 1.0, 0.0])
ONCE = np.ones((1, 5))
SURE = np.array([0.9, 0.8, 0.7, 0.6, 0.5])


def test_a_known_curve() -> None:
    """At coverages .2 to 1 the risks are 0, 0, 1/3, 1/4 and 2/5. The highest coverage within a risk counts, although a
    lower one exceeded it.
    """
    found = figures(SURE, RIGHT, ONCE, (0.0, 0.25, 0.3, 0.5))
    covered = [float(found[f"coverage_at_risk_{risk}"][0]) for risk in ("0.00", "0.25", "0.30", "0.50")]
    assert covered == pytest.approx([0.4, 0.8, 0.8, 1.0])
    assert found["area"][0] == pytest.approx((0 + 0 + 1 / 3 + 1 / 4 + 2 / 5) / 5)


def test_equally_confident_answers_are_kept_together() -> None:
    """A constant confidence keeps all answers or none, whatever the order of the rows."""
    for right in (RIGHT, RIGHT[::-1]):
        found = figures(np.full(5, 0.5), right, ONCE, (0.1, 0.4))
        assert found["coverage_at_risk_0.10"][0] == 0.0 and found["coverage_at_risk_0.40"][0] == 1.0
        assert found["area"][0] == pytest.approx(0.4)


def test_a_weight_of_two_is_a_row_twice() -> None:
    """Resamples are weights, and a row of weight 0 doesn't count. Answers without a confidence are withheld first."""
    sure = np.array([np.nan, 0.8, 0.7, 0.6, 0.5])
    drawn = np.array([[1.0, 2.0, 0.0, 1.0, 1.0]])
    again = figures(np.array([0.8, 0.8, 0.6, 0.5, -1.0]), np.array([1.0, 1.0, 1.0, 0.0, 1.0]), ONCE, (0.1,))
    found = figures(sure, RIGHT, drawn, (0.1,))
    assert {key: value.tolist() for key, value in found.items()} == {k: v.tolist() for k, v in again.items()}
    assert found["coverage_at_risk_0.10"][0] == 0.6


def test_a_better_confidence_has_a_lower_risk() -> None:
    """On two splits of one log the paired difference excludes zero, hindsight is the best, and without abstention the
    risk is the error rate.
    """
    rng = np.random.default_rng(0)
    chance = rng.random(600)
    right = (rng.random(600) < chance).astype(float)
    blurred = chance + rng.normal(0.0, 0.5, 600)
    halves = [np.arange(0, 600, 2), np.arange(1, 600, 2)]
    splits = [Given(rows, right[rows], {CALIBRATED: chance[rows], RAW: blurred[rows]}) for rows in halves]
    found = risk_coverage(splits, 600, (0.2,))
    assert found["calibrated_minus_raw_confidence"]["area"]["high"] < 0.0
    assert found["calibrated_minus_raw_confidence"]["coverage_at_risk_0.20"]["low"] > 0.0
    assert found[HINDSIGHT]["area"]["value"] < found[CALIBRATED]["area"]["low"]
    assert found["no_abstention"]["risk"]["value"] == pytest.approx(1.0 - right.mean())
    assert found[CALIBRATED]["area"]["low"] < found[CALIBRATED]["area"]["value"] < found[CALIBRATED]["area"]["high"]


def test_a_log_without_confidences_has_no_raw_curve() -> None:
    """Such a log may still have a cascade, which reads agreement."""
    splits = [Given(np.arange(5), RIGHT, {CALIBRATED: SURE, RAW: np.full(5, np.nan)})]
    assert set(risk_coverage(splits, 5, (0.1,), resamples=5)) == {CALIBRATED, HINDSIGHT, "no_abstention"}


def test_the_report_has_the_certified_coverage_beside_the_curve() -> None:
    """For every risk it has the certified coverage and the highest in hindsight; abstention withholds wrong answers
    first.
    """
    setting = TrainingSettings(router="linear", estimate_folds=2, folds=2)
    report = evaluate(logged(600), splits=2, setting=setting)
    curve = report["risk_coverage"]
    assert set(report["abstaining"]) == {f"risk_{risk:.2f}" for risk in REPORTED_RISKS}
    covered = [curve[CALIBRATED][f"coverage_at_risk_{risk:.2f}"]["value"] for risk in REPORTED_RISKS]
    assert covered == sorted(covered) and covered[-1] > 0.5
    area = {name: curve[name]["area"]["value"] for name in (HINDSIGHT, CALIBRATED, RAW)}
    assert area[HINDSIGHT] < min(area[CALIBRATED], area[RAW])
    assert max(area[CALIBRATED], area[RAW]) < curve["no_abstention"]["risk"]["low"]
