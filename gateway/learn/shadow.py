"""A candidate beside the incumbent: first without effect, on queries that came after it was made, then before a share
of the traffic.

Shadow decisions need no place on the request path: a logged query holds all that a router reads, so the candidate
decides it again afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from gateway.journal.store import RouterVersion, Store
from gateway.learn.dataset import Log
from gateway.learn.gate import GateVerdict, compared, judge
from gateway.learn.whatif import Policy, decided
from gateway.settings import CanarySetting, Settings, change_settings
from routers.intervals import Interval
from routers.ope import Array


@dataclass(frozen=True, slots=True)
class Shadowed:
    """What the candidate would have done lately."""

    rounds: int
    verdict: GateVerdict
    agreement: float
    """Probability that it would have chosen the same model."""


def shadowed(log: Log, candidate: Policy, incumbent: Policy, reward: Array) -> Shadowed:
    """`log`: rounds that the candidate was not trained on."""
    theirs, ours = decided(candidate, log), decided(incumbent, log)
    return Shadowed(len(log), judge(log, theirs, ours, reward), float((theirs * ours).sum(1).mean()))


@dataclass(frozen=True, slots=True)
class Halves:
    """Randomised traffic: rewards of what the candidate decided and of what the incumbent did."""

    candidate: Array
    incumbent: Array

    def difference(self) -> Interval | None:
        """None: too few on one side."""
        if min(len(self.candidate), len(self.incumbent)) < 2:
            return None
        return compared(self.candidate, self.incumbent)


def halves_of(log: Log, label: str, reward: Array, since_s: float) -> Halves:
    """Rounds since then, told apart by the router's label in the record."""
    lately = np.array([record.time_s >= since_s for record in log.records], bool) & np.isfinite(reward)
    mine = np.array([record.router == label for record in log.records], bool)
    return Halves(reward[lately & mine], reward[lately & ~mine])


def begin_canary(run_dir: str, route: str, version: RouterVersion, share: float) -> None:
    """Workers put the version before that share of the route's traffic within a second."""

    def change(settings: Settings) -> Settings:
        canaries = {**settings.canaries, route: CanarySetting(version.artifact, share)}
        return msgspec.structs.replace(settings, canaries=canaries)

    change_settings(run_dir, change)


def end_canary(run_dir: str, route: str) -> None:
    """All of the route's traffic goes back to the incumbent."""

    def change(settings: Settings) -> Settings:
        canaries = {name: one for name, one in settings.canaries.items() if name != route}
        return msgspec.structs.replace(settings, canaries=canaries)

    change_settings(run_dir, change)


def mark(store: Store, version: RouterVersion, state: str, time_s: float, **told: object) -> RouterVersion:
    """Note where a version stands now, since when, and why."""
    metrics = {**(version.metrics or {}), **told, "since_s": time_s}
    marked = RouterVersion(
        version.name, version.version, version.time_s, state, version.artifact, version.checksum, metrics
    )
    store.save_router_version(marked, "learn")
    return marked


def gated(version: RouterVersion) -> Interval | None:
    """By how much the gate found it better than the incumbent; None: nobody wrote it down."""
    gate = (version.metrics or {}).get("gate")
    found = gate.get("difference") if isinstance(gate, dict) else None
    return Interval(found["value"], found["low"], found["high"]) if isinstance(found, dict) else None
