"""Learning: versions and where they come from, calibration, drift, alarms."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from gateway.admin.shapes.common import Interval, Share, Wanted


class Version(BaseModel):
    """A trained router and where it stands."""

    route: str
    version: str
    time_s: float
    state: str
    """candidate | shadow | canary | live | retired | refused | rolled_back"""
    since_s: float | None
    """Since when it stands there."""
    parent: str
    """The version that served when it was trained; empty: what the configuration names, or unknown."""
    label: str
    """name@version, as decisions record it."""
    rows: int | None
    """Rounds it was trained on."""
    data_checksum: str
    gate: Gate | None
    shadow: Gate | None
    canary: Interval | None
    """Difference of the randomised halves, candidate minus incumbent."""
    checksum: str
    artifact: str
    may: list[Literal["promote", "canary", "end_canary", "roll_back"]]
    """What can be done with it now."""


class Gate(BaseModel):
    """What the offline judgement said."""

    passed: bool
    reason: str
    candidate: Interval | None = None
    incumbent: Interval | None = None
    difference: Interval | None = None


class Alarm(BaseModel):
    """Something is wrong with a route's learning, in words an operator can act on."""

    route: str
    kind: str
    message: str
    value: float
    model: str
    time_s: float


class CalibrationBin(BaseModel):
    """Answers of a model that the router expected to score about `expected`: what they scored."""

    expected: float
    scored: Interval
    n: int


class Calibration(BaseModel):
    """Of one model on one route."""

    model: str
    bins: list[CalibrationBin]
    error: float | None
    """Expected calibration error: mean distance of the two, weighted by n."""
    n: int


class DriftPoint(BaseModel):
    """A slice of the latest rounds, oldest first."""

    since_s: float
    until_s: float
    rounds: int
    labelled: int
    score: Interval | None
    expected: float | None
    """Mean of what the router expected of the models it chose."""
    feature_shift: float | None
    """Distance of the queries' mean from the first slice's, in standard deviations of the axis that moved most."""
    explored_share: float


class RouteLearning(BaseModel):
    """One route's."""

    route: str
    live: str
    """Version that serves; empty: what the configuration names."""
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
    """Put a version before a share of its route's requests."""

    share: Share = 0.1


class VersionDone(BaseModel):
    """What serves now."""

    route: str
    version: str
    state: str
    workers: int
    confirmed: int
    detail: dict[str, Any] = {}


Version.model_rebuild()
