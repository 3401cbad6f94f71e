"""Learning: router versions, calibration, drift and alarms."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from gateway.admin.shapes.common import Interval, Share, Wanted


class Version(BaseModel):
    """A trained router and its state."""

    route: str
    version: str
    time_s: float
    state: str
    """candidate | shadow | canary | live | retired | refused | rolled_back"""
    since_s: float | None
    """When it entered this state; None: unknown."""
    parent: str
    """The version that served when it was trained; empty: the configuration's router, or unknown."""
    label: str
    """name@version, as decisions record it."""
    rows: int | None
    """Number of rounds that it was trained on; None: not recorded."""
    data_checksum: str
    gate: Gate | None
    shadow: Gate | None
    canary: Interval | None
    """Difference of the randomised groups, candidate minus incumbent."""
    checksum: str
    artifact: str
    may: list[Literal["promote", "canary", "end_canary", "roll_back"]]
    """Actions that are possible now."""


class Gate(BaseModel):
    """Result of a gate: the comparison of a candidate with the incumbent, offline or in shadow."""

    passed: bool
    reason: str
    candidate: Interval | None = None
    incumbent: Interval | None = None
    difference: Interval | None = None


class Alarm(BaseModel):
    """A problem with a route's learning, and what an operator can do about it."""

    route: str
    kind: str
    message: str
    value: float
    model: str
    time_s: float


class CalibrationBin(BaseModel):
    """Answers of which the router expected a score of about `expected`, and their mean score."""

    expected: float
    scored: Interval
    n: int


class Calibration(BaseModel):
    """Calibration of the expected quality of one model on one route."""

    model: str
    bins: list[CalibrationBin]
    error: float | None
    """Expected calibration error: mean absolute difference of expected and actual score, weighted by n."""
    n: int


class DriftPoint(BaseModel):
    """A slice of the latest rounds in time order."""

    since_s: float
    until_s: float
    rounds: int
    labelled: int
    score: Interval | None
    expected: float | None
    """Mean quality that the router expected of the models it chose."""
    feature_shift: float | None
    """Largest shift of the queries' mean features since the first slice, over all axes, in standard deviations."""
    explored_share: float


class RouteLearning(BaseModel):
    """Learning of one route."""

    route: str
    live: str
    """The version that serves; empty: the router that the configuration names."""
    router: str
    versions: list[Version]
    alarms: list[Alarm]
    calibration: list[Calibration]
    drift: list[DriftPoint]
    rounds: int
    labelled: int
    time_s: float | None
    """When alarms, calibration and drift were computed; None: not yet."""
    note: str = ""


class CanaryWanted(Wanted):
    """The share of a route's requests that a canary serves."""

    share: Share = 0.1


class VersionDone(BaseModel):
    """A change of a version's state, and how many workers have confirmed it."""

    route: str
    version: str
    state: str
    workers: int
    confirmed: int
    detail: dict[str, Any] = {}


Version.model_rebuild()
