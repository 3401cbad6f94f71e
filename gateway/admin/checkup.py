"""Computes the state of a route's learning (alarms, calibration, drift), and stores it for the pages to read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.admin.rounds import latest_log, route_of
from gateway.admin.services import AdminServices
from gateway.admin.shapes.common import Interval
from gateway.admin.shapes.learning import Calibration, CalibrationBin, DriftPoint
from gateway.app import without_lost
from gateway.config.settings import Settings
from gateway.journal.insights import keep_insight
from gateway.learn.alarms import expected_quality, own_answers, raised
from gateway.learn.dataset import Log, NothingLogged
from gateway.learn.loop import learnt_name, trained_until_s
from routers.intervals import wilson_interval

KIND = "learning"
BINS = 8
LEAST_IN_BIN = 5
SLICES = 12


def refresh_learning(services: AdminServices, route: str) -> None:
    """Compute and store the state of a route's learning, also where it has no rounds yet."""
    try:
        log = latest_log(services, route)
    except NothingLogged as none:
        nothing = {
            "alarms": _lost(services, route), "calibration": [], "drift": [], "rounds": 0, "labelled": 0,
            "note": str(none),
        }  # fmt: skip
        keep_insight(services.store, KIND, route, nothing)
        return
    state: dict[str, Any] = {
        "alarms": _alarms(services, route, log), "rounds": len(log), "labelled": int(log.labelled.sum()), "note": "",
        "calibration": [one.model_dump() for one in calibrations(log)],
        "drift": [one.model_dump() for one in drifts(log)],
    }  # fmt: skip
    keep_insight(services.store, KIND, route, state)


def _alarms(services: AdminServices, route: str, log: Log) -> list[dict[str, Any]]:
    live = next((one for one in services.store.router_versions(route) if one.state == "live"), None)
    stated: Any = (live.metrics or {}).get("since_s", live.time_s) if live is not None else 0.0
    trained_s = trained_until_s(services.store.setting(learnt_name(route)) or {})
    shows_cases = bool(route_of(services, route).solved)
    found = raised(log, version_since_s=float(stated), trained_until_s=trained_s, shows_cases=shows_cases)
    return _lost(services, route) + [
        {"route": route, "kind": one.kind, "message": one.message, "value": one.value, "model": one.model}
        for one in found
    ]


def _lost(services: AdminServices, route: str) -> list[dict[str, Any]]:
    """An alarm where the promoted router can't be opened any more, so that workers that start do without it."""
    promoted = Settings(routers={name: path for name, path in services.settings().routers.items() if name == route})
    _, lost = without_lost(promoted, promoted)
    return [
        {"route": name, "kind": "lost", "message": f"its promoted router can't be opened: {why}", "value": 1.0,
         "model": ""}
        for name, why in lost.items()
    ]  # fmt: skip


def calibrations(log: Log) -> list[Calibration]:
    """Calibration of the expected quality of each model, in bins of equal count."""
    expected = expected_quality(log)
    known = np.isfinite(expected) & log.labelled & own_answers(log)
    return [
        _calibration(model, expected[mine], log.score[mine])
        for j, model in enumerate(log.models)
        if (mine := known & (log.action == j)).any()
    ]


def _calibration(model: str, expected: NDArray[np.float64], score: NDArray[np.float64]) -> Calibration:
    order, n = np.argsort(expected, kind="stable"), len(expected)
    parts = [part for part in np.array_split(order, min(BINS, max(1, n // LEAST_IN_BIN))) if len(part)]
    bins = [
        CalibrationBin(expected=float(expected[part].mean()), scored=_mean(score[part]), n=len(part)) for part in parts
    ]
    error = sum(one.n * abs(one.expected - one.scored.value) for one in bins) / n
    return Calibration(model=model, bins=bins, error=error, n=n)


def drifts(log: Log) -> list[DriftPoint]:
    """Drift over the rounds, in slices of equal count, oldest first."""
    expected, axes = expected_quality(log), log.covariates(8)
    parts = [part for part in np.array_split(np.arange(len(log)), min(SLICES, max(1, len(log) // 10))) if len(part)]
    first, found = axes[parts[0]].mean(0), []
    for part in parts:
        scores, hoped = log.score[part], expected[part]
        scored = scores[np.isfinite(scores)]
        shift = float(np.abs(axes[part].mean(0) - first).max())
        found.append(
            DriftPoint(
                since_s=log.records[int(part[0])].time_s, until_s=log.records[int(part[-1])].time_s, rounds=len(part),
                labelled=len(scored), score=_mean(scored) if len(scored) else None,
                expected=float(np.nanmean(hoped)) if np.isfinite(hoped).any() else None, feature_shift=shift,
                explored_share=float((1.0 - log.logged[part].max(1)).mean()),
            )
        )  # fmt: skip
    return found


def _mean(values: NDArray[np.float64]) -> Interval:
    """Mean of scores in [0, 1] with its 95 % interval (Wilson 1927), conservative where scores are not just 0 and 1."""
    mean = float(values.mean())
    return Interval(**wilson_interval(mean * len(values), len(values)).as_dict())
