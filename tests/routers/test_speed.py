"""The speed check runs and reports every figure; how fast decisions are can only be measured on a quiet machine."""

from __future__ import annotations

from routers.bench.speed import LENGTHS, measured


def test_every_length_has_its_figures() -> None:
    """Both lengths have cold and warm percentiles, in order."""
    report = measured("linear", 5)
    assert report.keys() == {f"{name}, {state}" for name in LENGTHS for state in ("hot", "cold")}
    assert all(0 < row["p10_us"] <= row["p50_us"] <= row["p95_us"] for row in report.values())
