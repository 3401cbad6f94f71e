"""Tries a candidate beside the incumbent: first as a shadow on logged queries, then as a canary on a share of the
traffic.

Shadow decisions are not made on the request path: a logged query has everything that a router reads, so the candidate
decides it afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import numpy as np

from gateway.config.settings import CanarySetting, Settings, change_settings
from gateway.journal.store import RouterVersion, Store
from gateway.learn.dataset import Log
from gateway.learn.gate import GateVerdict, compared, judge
from gateway.learn.whatif import Policy, decided
from routers.intervals import Interval
from routers.ope import Array


@dataclass(frozen=True, slots=True)
class Shadowed:
    """A candidate's decisions on logged rounds, beside the incumbent's."""

    rounds: int
    verdict: GateVerdict
    agreement: float
    """Probability that both choose the same model."""


def shadowed(log: Log, candidate: Policy, incumbent: Policy, reward: Array) -> Shadowed:
    """Compare a candidate with the incumbent on rounds that it was not trained on."""
    theirs, ours = decided(candidate, log), decided(incumbent, log)
    return Shadowed(len(log), judge(log, theirs, ours, reward), float((theirs * ours).sum(1).mean()))


@dataclass(frozen=True, slots=True)
class Halves:
    """The rewards of randomised traffic: of the candidate's decisions, and of the incumbent's."""

    candidate: Array
    incumbent: Array

    def difference(self) -> Interval | None:
        """Difference of the mean rewards; None where one side has fewer than two."""
        if min(len(self.candidate), len(self.incumbent)) < 2:
            return None
        return compared(self.candidate, self.incumbent)


def halves_of(log: Log, label: str, reward: Array, since_s: float) -> Halves:
    """The rewards since `since_s`, split by the router's label in the record; `label` is the candidate's."""
    lately = np.array([record.time_s >= since_s for record in log.records], bool) & np.isfinite(reward)
    mine = np.array([record.router == label for record in log.records], bool)
    return Halves(reward[lately & mine], reward[lately & ~mine])


def begin_canary(run_dir: str, route: str, version: RouterVersion, share: float) -> None:
    """Let workers use the version for this share of the route's traffic, within a second."""

    def change(settings: Settings) -> Settings:
        canaries = {**settings.canaries, route: CanarySetting(version.artifact, share)}
        return msgspec.structs.replace(settings, canaries=canaries)

    change_settings(run_dir, change)


def end_canary(run_dir: str, route: str) -> None:
    """Give all of the route's traffic back to the incumbent."""

    def change(settings: Settings) -> Settings:
        canaries = {name: one for name, one in settings.canaries.items() if name != route}
        return msgspec.structs.replace(settings, canaries=canaries)

    change_settings(run_dir, change)


def mark(
    store: Store, version: RouterVersion, state: str, time_s: float, actor: str = "learn", /, **notes: object
) -> RouterVersion:
    """Store a version's new state, its time, and notes on the reason."""
    marked = replace(version, state=state, metrics={**(version.metrics or {}), **notes, "since_s": time_s})
    store.save_router_version(marked, actor)
    return marked


def gated(version: RouterVersion) -> Interval | None:
    """The difference to the incumbent that the gate found; None where none is stored with the version."""
    gate = (version.metrics or {}).get("gate")
    found = gate.get("difference") if isinstance(gate, dict) else None
    return Interval(found["value"], found["low"], found["high"]) if isinstance(found, dict) else None
