"""The closed loop of one route: data set, retrain, gate, shadow, canary, promote or roll back.

Each step reads the journal, takes at most one of these actions, and reports what it did and why. Its state is in the
store, so a step may run in any process at any time. Nothing is promoted without evidence in the journal.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gateway.config.types import Config
from gateway.journal.store import RouterVersion, Store, open_store
from gateway.learn.alarms import Alarm, raised
from gateway.learn.dataset import Log, NothingLogged, one_sided, read_log
from gateway.learn.gate import GateVerdict, failed, judge, reference_of, worth
from gateway.learn.key_share import bounded
from gateway.learn.policy import route_config, route_policy
from gateway.learn.retrain import Trained, lately, trained, twins
from gateway.learn.shadow import begin_canary, end_canary, gated, halves_of, mark, shadowed
from gateway.learn.whatif import Policy, decided, widened
from gateway.promote import Versions
from routers.artifact import Card
from routers.ope import Array
from routers.outcomes import DataError
from routers.registry import save_router
from routers.types import Router

WAITS, REFUSED, SHADOW, CANARY, PROMOTED, ROLLED_BACK = (
    "waits", "refused", "shadow", "canary", "promoted", "rolled back",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoopThresholds:
    """The evidence that each action needs, in scored rounds."""

    router: str = "linear"
    min_scored: int = 100
    """Scored rounds before the first training, and after a model has changed."""
    retrain_after: int = 200
    """New scored rounds since the last training."""
    ask_again_after: int = 50
    """New scored rounds since the gate refused a candidate. It is small because keeping an old router may cost more
    than another try, and a candidate that passes by luck must still pass the canary.
    """
    shadow_rounds: int = 50
    canary_share: float = 0.2
    canary_rounds: int = 40
    """Scored rounds decided by the candidate."""
    margin: float = 0.05
    """A canary is only promoted once its lower bound is above minus this reward, or `patience` is used up."""
    patience: int = 200
    """Canary rounds after which the sign of the difference decides, pooled over canary and gate."""
    limit: int = 5000
    """Most rounds that are read, up to the latest scored one."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """The action of one step, with its reason and the route's alarms."""

    action: str
    reason: str
    version: str = ""
    alarms: tuple[Alarm, ...] = ()

    def __str__(self) -> str:
        alarms = "".join(f"\n  alarm: {alarm.kind}: {alarm.message}" for alarm in self.alarms)
        return f"{self.action} {self.version}: {self.reason}{alarms}".replace(" :", ":")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Loop:
    """The learning loop of one route."""

    def __init__(self, config: Config, store: Store, route: str, terms: LoopThresholds | None = None) -> None:
        self.config, self.store, self.route = config, store, route
        self.terms = terms or LoopThresholds()
        self.explore = route_config(config, route).explore
        self.versions = Versions(store, config.server.run_dir)

    @classmethod
    def opened(cls, config: Config, route: str, terms: LoopThresholds | None = None) -> Loop:
        """The loop of a route on the configured store. Raises CallerError where there is no such route."""
        route_config(config, route)
        return cls(config, open_store(config.storage.url), route, terms)

    def step(self, now_s: float) -> StepReport:
        """Take at most one action."""
        try:
            log = self.heard()
        except NothingLogged as none:
            return StepReport(WAITS, str(none))
        incumbent = self.policy()
        log = widened(log.until(now_s), [one.model for one in incumbent.candidates])
        if not len(log):
            return StepReport(WAITS, "every round in the journal has a time in the future: check the clocks")
        versions = {one.state: self.timely(one, now_s) for one in reversed(self.versions.list(self.route))}
        live = versions.get("live")
        since_s = _since(live) if live else 0.0
        noted = self.noted(now_s)
        shows_cases = bool(route_config(self.config, self.route).solved)
        alarms = tuple(
            raised(log, version_since_s=since_s, trained_until_s=trained_until_s(noted), shows_cases=shows_cases)
        )
        candidate = versions.get("canary") or versions.get("shadow")
        if candidate is not None and (lost := self.refuse_if_lost(candidate, now_s)):
            report = lost
        elif "canary" in versions:
            report = self.watch_canary(log, versions["canary"], now_s, live.version if live else "")
        elif "shadow" in versions:
            report = self.watch_shadow(log, versions["shadow"], incumbent, now_s)
        else:
            rollback = self.watch_live(log, live, incumbent) if live else None
            report = rollback or self.retrain(log, incumbent, noted, now_s)
        return StepReport(report.action, report.reason, report.version, alarms)

    # -- the actions

    def retrain(self, log: Log, incumbent: Policy, noted: Mapping[str, Any], now_s: float) -> StepReport:
        """Train a new candidate where enough was scored since the last training and the gate passes it."""
        train, judged = lately(log)
        since_s = trained_until_s(noted)
        fresh = int(log.since(since_s).labelled.sum())
        # after a model has changed, every step tries again until the router has changed too
        changed = judged is not log and judged.records[0].time_s > self._live_since()
        again = self.terms.ask_again_after if noted.get("refused") else self.terms.retrain_after
        enough = self.terms.min_scored if changed or not since_s else again
        if (int(judged.labelled.sum()) if changed else fresh) < enough:
            return StepReport(WAITS, f"{fresh} scored rounds since the last training")
        if alike := one_sided(judged):
            return StepReport(REFUSED, alike)
        until_s = _latest_scored_s(log)
        try:
            verdict = self.gated(train, self.unseen(judged), incumbent)
            if verdict.refusal is not None:  # more rounds may suffice, so the next step tries again
                return StepReport(REFUSED, verdict.reason)
            now = {"trained_until_s": until_s, "refused": not verdict.passed}
            self.store.save_setting(learnt_name(self.route), now, "learn")
            if not verdict.passed:
                return StepReport(REFUSED, verdict.reason)
            candidate = trained(train, self.terms.router, self._next_version(), self.explore)
        except DataError as error:
            return StepReport(REFUSED, str(error))
        version = self.add_shadow(candidate, verdict, now_s, until_s)
        return StepReport(SHADOW, verdict.reason, version.version)

    def unseen(self, judged: Log) -> Log:
        """The rounds that the incumbent was not trained on, because it looks better than it is on its own training
        data; all rounds where these are too few.
        """
        live = next((one for one in self.versions.list(self.route) if one.state == "live"), None)
        since_s = _noted(live, "trained_until_s", 0.0) if live else 0.0
        fresh = judged.since(since_s)
        return fresh if int(fresh.labelled.sum()) >= self.terms.min_scored else judged

    def gated(self, train: Log, judged: Log, incumbent: Policy) -> GateVerdict:
        """The gate's verdict on the training method: two routers, each judged on the queries that it wasn't trained on.
        """
        one, two, first = twins(train, judged, self.terms.router, self.explore)
        target = np.where(
            first[:, None], decided(_with(incumbent, one), judged), decided(_with(incumbent, two), judged)
        )
        return judge(judged, target, decided(incumbent, judged), self.reward(judged, incumbent))

    def refuse_if_lost(self, version: RouterVersion, now_s: float) -> StepReport | None:
        """Refuse a candidate whose artefact can't be opened any more, so that another can follow; None where it can."""
        fault = self.versions.fault(version)
        return self.give_up(version, fault, now_s) if fault else None

    def give_up(self, version: RouterVersion, reason: str, now_s: float) -> StepReport:
        """Refuse a candidate without a verdict, and end its canary."""
        end_canary(str(self.config.server.run_dir), self.route)
        mark(self.store, version, "refused", now_s)
        return StepReport(REFUSED, reason, version.version)

    def watch_shadow(self, log: Log, version: RouterVersion, incumbent: Policy, now_s: float) -> StepReport:
        """Start the canary of a shadow version unless it is significantly worse on rounds from after its training."""
        fresh = log.since(_since(version))
        if int(fresh.labelled.sum()) < self.terms.shadow_rounds:
            return StepReport(WAITS, f"{int(fresh.labelled.sum())} scored rounds in the shadow", version.version)
        found = shadowed(fresh, self.policy(self.versions.artifact(version)), incumbent, self.reward(fresh, incumbent))
        gap = found.verdict.difference
        if gap is not None and gap.high < 0.0:
            mark(self.store, version, "refused", now_s, shadow=found.verdict.as_dict())
            return StepReport(REFUSED, found.verdict.reason, version.version)
        begin_canary(str(self.config.server.run_dir), self.route, version, self.terms.canary_share)
        mark(self.store, version, "canary", now_s, shadow=found.verdict.as_dict())
        reason = f"agrees with {found.agreement:.0%} of decisions; {found.verdict.reason}"
        return StepReport(CANARY, reason, version.version)

    def watch_canary(self, log: Log, version: RouterVersion, now_s: float, live: str) -> StepReport:
        """Promote or roll back a canary by the randomised halves of the traffic. `live`: the version that served when
        the step began.
        """
        label = str((version.metrics or {}).get("label", "")) or self._label(version)
        incumbent = self.policy()
        if label == label_of(incumbent.router):
            reason = f"the live router is called {label} too, so that their answers can't be told apart"
            return self.give_up(version, f"{reason}: train it with another --version", now_s)
        halves = halves_of(log, label, self.reward(log, incumbent), _since(version))
        gap, count = halves.difference(), len(halves.candidate)
        if gap is None or count < self.terms.canary_rounds:
            return StepReport(WAITS, f"{count} scored canary rounds", version.version)
        reason = f"{count} canary rounds, difference {gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
        bad = failed(gap, gated(version), self.terms.margin, settled=count >= self.terms.patience)
        if not bad and gap.low <= -self.terms.margin and count < self.terms.patience:
            return StepReport(WAITS, reason, version.version)
        end_canary(str(self.config.server.run_dir), self.route)
        if bad:
            mark(self.store, version, "rolled_back", now_s, canary=gap.as_dict())
            return StepReport(ROLLED_BACK, reason, version.version)
        noted = mark(self.store, version, "candidate", now_s, canary=gap.as_dict())
        self.versions.promote(self.route, noted.version, actor="learn", instead=live)
        return StepReport(PROMOTED, reason, version.version)

    def watch_live(self, log: Log, live: RouterVersion, incumbent: Policy) -> StepReport | None:
        """Roll back to the former version where it would have been worth more since the promotion; else None."""
        before = self.versions.former(self.route)
        fresh = log.since(_since(live))
        if before is None or before.time_s >= live.time_s or int(fresh.labelled.sum()) < self.terms.min_scored:
            return None
        former = decided(self.policy(self.versions.artifact(before)), fresh)
        verdict = judge(fresh, former, decided(incumbent, fresh), self.reward(fresh, incumbent))
        if not verdict.passed:
            return None
        self.versions.roll_back(self.route, actor="learn", instead=live.version)
        return StepReport(ROLLED_BACK, f"the version before: {verdict.reason}", live.version)

    # -- shared by the actions

    def heard(self) -> Log:
        """The latest rounds, in which no key has more than its share of the scores. Raises NothingLogged."""
        log = read_log(self.store.engine, route=self.route, limit=self.terms.limit)
        return bounded(log, route_config(self.config, self.route).max_key_share)

    def noted(self, now_s: float) -> Mapping[str, Any]:
        """The saved state of the route's training; a time in the future, from a wrong clock, is set to now."""
        noted = self.store.setting(learnt_name(self.route)) or {}
        if trained_until_s(noted) > now_s:
            noted = {**noted, "trained_until_s": now_s}
            self.store.save_setting(learnt_name(self.route), noted, "learn")
        return noted

    def timely(self, version: RouterVersion, now_s: float) -> RouterVersion:
        """The version, with the time of its state set to now where it is in the future."""
        return mark(self.store, version, version.state, now_s) if _since(version) > now_s else version

    def policy(self, router: str = "") -> Policy:
        """The route's present policy, or the same with another router."""
        return route_policy(self.config, self.store, self.route, router=router)

    def reward(self, log: Log, incumbent: Policy) -> Array:
        """The reward of each round, at the route's exchange rate."""
        return worth(log, incumbent.knobs, reference_of(log))

    def add_shadow(self, candidate: Trained, verdict: GateVerdict, now_s: float, until_s: float) -> RouterVersion:
        """Save the trained router as an artefact with its lineage, in the state shadow."""
        live = next((one.version for one in self.versions.list(self.route) if one.state == "live"), "")
        router = candidate.router
        card = Card(
            router.name, router.version, router.features_version, candidate.models, parent=live,
            data_checksum=candidate.checksum, trained_on=(f"journal:{self.route}",),
            metrics={"rows": candidate.rows, **verdict.as_dict()},
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "candidate.safetensors"
            save_router(path, router, card)
            version = self.versions.add(self.route, path, state="candidate", actor="learn")
        lineage = {"gate": verdict.as_dict(), "label": label_of(router), "parent": live, "trained_until_s": until_s}
        return mark(self.store, version, "shadow", now_s, **lineage)

    def _label(self, version: RouterVersion) -> str:
        return label_of(self.policy(self.versions.artifact(version)).router)

    def _live_since(self) -> float:
        """Unix time since which the live version serves; 0 where none is live and the configured router serves."""
        return next((_since(one) for one in self.versions.list(self.route) if one.state == "live"), 0.0)

    def _next_version(self) -> str:
        return f"{len(self.versions.list(self.route)) + 1}"


def label_of(router: Router) -> str:
    """The label of the router in the records of its decisions."""
    return f"{router.name}@{router.version}"


def learnt_name(route: str) -> str:
    """Name of the setting with the state of a route's training."""
    return f"learn.{route}"


def trained_until_s(noted: Mapping[str, Any]) -> float:
    """Unix time of the latest decision that was trained on; 0 where none was."""
    return float(noted.get("trained_until_s", 0.0))


def _latest_scored_s(log: Log) -> float:
    """Unix time of the latest scored round."""
    return log.records[int(np.flatnonzero(log.labelled)[-1])].time_s


def _since(version: RouterVersion) -> float:
    """Unix time since which the version has its state."""
    return _noted(version, "since_s", version.time_s)


def _noted(version: RouterVersion, name: str, otherwise: float) -> float:
    """A number in the version's metrics, or `otherwise`."""
    found = (version.metrics or {}).get(name)
    return float(found) if isinstance(found, (int, float)) else otherwise


def _with(policy: Policy, router: Router) -> Policy:
    return Policy(router, policy.candidates, policy.knobs, policy.default_model)
