"""Bandits that learn while they serve: each answer that is scored moves what the next request may expect.

A score is what feedback says; a failed automatic check says 0, as often as answers are scored at all. On a route
without any feedback an answer is worth what its checks say, where one looked at what it says; nothing is learnt from
the others, for that nothing went wrong does not say that an answer was any good. Every worker keeps the sums of what
it heard itself and reads those of the others (gateway/learn/bandit_store.py), so that all decide by the same knowledge
within a second or two and nothing is counted twice. Left out: cache hits, requests that the client broke off, and
cascades of several steps, whose kept answers are the better ones of their model.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections import OrderedDict, deque
from collections.abc import Sequence

from gateway.config import Config
from gateway.errors import HeadgateError
from gateway.journal.reader import Reader
from gateway.journal.record import ANY_TENANT, DecisionRecord, FeedbackRecord
from gateway.journal.vectors import unpacked
from gateway.learn.bandit_store import BanditStore, FolderBanditStore, RedisBanditStore, read_states
from gateway.learn.key_share import KeyShares
from gateway.learn.rounds import drawn_of, failed_check, is_round, was_checked
from gateway.routes import RouteBook
from routers.bandit import Bandit
from routers.bandit_state import BanditState
from routers.canary import Canary
from routers.strategy_bandit import StrategyBandit
from routers.types import Candidate, Query, Router, Undecided

log = logging.getLogger("headgate.online")

SHARE_EVERY_S = 1.0
REMEMBERED = 2000
"""Decisions whose feedback needs no look into the journal."""


class Learner:
    """What one route learns in this worker."""

    def __init__(self, bandit: Bandit | StrategyBandit, candidates: Sequence[Candidate]) -> None:
        self.bandit, self.candidates, self.key_shares = bandit, candidates, KeyShares(1.0)
        self.decided = self.scored = self.checked = 0
        self.learnt: OrderedDict[str, float] = OrderedDict()
        """Decision to the score that was learnt of it: a later one replaces it."""
        self.changed = False

    def outcome(self, record: DecisionRecord) -> None:
        """What the checks say, where they may speak."""
        if not is_round(record):
            return
        failed, checked = bool(failed_check(record)), was_checked(record)
        self.decided += 1
        self.checked += checked
        if checked and not self.scored:
            self.hear(record, 0.0 if failed else 1.0)
        elif failed and drawn_of(record.id) < (self.scored or self.checked) / self.decided:
            self.hear(record, 0.0)

    def feedback(self, record: DecisionRecord, score: float) -> None:
        if is_round(record):
            self.scored += 1
            self.hear(record, score)

    def hear(self, record: DecisionRecord, score: float) -> None:
        """Learns it unless its key has spoken too much; what is said again was heard before."""
        if record.id in self.learnt or self.key_shares.heard(record):
            self.learn(record, score)

    def learn(self, record: DecisionRecord, score: float) -> None:
        """Of the model that answered, of the chosen one where nobody did; nothing of one that left the route since."""
        model = record.answered_model or record.model
        names = {one.model for one in record.candidates}
        candidates = [one for one in self.candidates if one.model in names]
        query = query_of(record)
        if len(record.plan) > 1 or query is None or model not in [one.model for one in candidates]:
            return
        bandit, before = self.bandit, self.learnt.get(record.id)
        assert isinstance(bandit, Bandit)
        answer = record.answer_of(model)
        try:
            if before is None:
                cost_usd = None if answer is None else answer.cost_nanousd / 1e9
                bandit.update(query, candidates, model, score, cost_usd)
            else:
                bandit.amend(query, model, score - before)
        except Undecided:
            return
        self.remember(record.id, score)

    def remember(self, id: str, score: float) -> None:
        self.learnt[id] = score
        if len(self.learnt) > REMEMBERED:
            self.learnt.popitem(last=False)
        self.changed = True


class StrategyLearner(Learner):
    """What one route's strategies have taught this worker: each answer's score, and how many calls it took."""

    def __init__(self, bandit: StrategyBandit) -> None:
        super().__init__(bandit, ())

    def learn(self, record: DecisionRecord, score: float) -> None:
        if not record.strategy or not record.vector or record.strategy not in self.strategies.names:
            return
        vector = unpacked(record)
        before = self.learnt.get(record.id)
        if before is None:
            self.strategies.learn(vector, record.strategy, score, sum(not one.failure for one in record.attempts))
        else:
            self.strategies.amend(vector, record.strategy, score - before)
        self.remember(record.id, score)

    @property
    def strategies(self) -> StrategyBandit:
        assert isinstance(self.bandit, StrategyBandit)
        return self.bandit


class Online:
    """Every route's learners in this worker."""

    def __init__(self, store: BanditStore, journal: Reader) -> None:
        self._store, self._journal = store, journal
        self._learners: dict[str, Learner] = {}
        """By key, those of former routers included: a reload must forget nothing."""
        self._routes: dict[str, list[Learner]] = {}
        self._recent: OrderedDict[str, DecisionRecord] = OrderedDict()
        self._said: deque[FeedbackRecord] = deque(maxlen=REMEMBERED)
        """On decisions that only the journal knows: taken already, so whoever said it does not wait."""

    def adopt(self, book: RouteBook) -> None:
        """The routes' bandits, as they are from now on, go on with what was learnt upon the same base."""
        routes = {}
        for name, route in book.routes.items():
            candidates = [model.candidate for model in route.models]
            bandits = bandit_of(route.router), route.strategy_bandit
            found = [self._learner(name, bandit, candidates) for bandit in bandits if bandit]
            for learner in found:
                learner.key_shares.most = route.config.max_key_share
            if found:
                routes[name] = found
        self._routes = routes

    def _learner(self, route: str, bandit: Bandit | StrategyBandit, candidates: Sequence[Candidate]) -> Learner:
        key = key_of(route, bandit)
        learner = self._learners.get(key)
        if learner is None:
            made = StrategyLearner(bandit) if isinstance(bandit, StrategyBandit) else Learner(bandit, candidates)
            return self._learners.setdefault(key, made)
        bandit.state = learner.bandit.state
        bandit.set_others(learner.bandit.others)
        learner.bandit, learner.candidates = bandit, candidates
        return learner

    def outcome(self, record: DecisionRecord) -> None:
        """A request is settled."""
        learners = self._routes.get(record.route)
        if learners is not None:
            for learner in learners:
                learner.outcome(record)
            self._remember(record)

    def feedback(self, said: FeedbackRecord) -> None:
        """Somebody scored an answer of whatever worker."""
        if said.score is None or not self._routes:
            return
        record = self._recent.get(_name_of(said))
        if record is None:
            self._said.append(said)
        else:
            self._hear(said, record)

    def _hear(self, said: FeedbackRecord, record: DecisionRecord) -> None:
        if said.score is not None and said.tenant in (record.tenant, ANY_TENANT):
            for learner in self._routes.get(record.route, ()):
                learner.feedback(record, said.score)

    async def catch_up(self) -> None:
        """Learns from what was said of decisions that this worker does not remember, until cancelled. Where the journal
        is away, later.
        """
        while True:
            while self._said:
                said = self._said.popleft()
                try:
                    record = await self._journal.decision(_name_of(said), said.tenant or None)
                except (HeadgateError, OSError) as error:
                    self._said.appendleft(said)
                    log.warning("what was said of %d answers is not learnt from yet: %s", len(self._said), error)
                    break
                if record is not None:
                    self._hear(said, record)
            await asyncio.sleep(SHARE_EVERY_S)

    async def run(self) -> None:
        """Tells and hears, until cancelled."""
        while True:
            for key, learner in list(self._learners.items()):
                try:
                    await self._exchange(key, learner)
                except OSError as error:
                    log.warning("what bandits learnt is not shared now: %s", error)
            await asyncio.sleep(SHARE_EVERY_S)

    async def close(self) -> None:
        """The last of it is told."""
        for key, learner in self._learners.items():
            if learner.changed:
                await self._store.publish(key, learner.bandit.state.to_bytes())
        await self._store.close()

    def answers(self) -> dict[tuple[str, ...], float]:
        """By route: scored answers that its bandit knows of."""
        return {(name,): float(learners[0].bandit.seen) for name, learners in self._routes.items()}

    async def _exchange(self, key: str, learner: Learner) -> None:
        bandit = learner.bandit
        if learner.changed:
            learner.changed = False
            if not await self._store.publish(key, bandit.state.to_bytes()):
                learner.changed = True
        found = await self._store.others(key)
        if found is not None:
            bandit.set_others(added(found, bandit.projection.dims))

    def _remember(self, record: DecisionRecord) -> None:
        for id in (record.id, record.response_id, record.request_id):
            if id:
                self._recent[id] = record
        while len(self._recent) > 3 * REMEMBERED:
            self._recent.popitem(last=False)


def _name_of(said: FeedbackRecord) -> str:
    return said.decision_id or said.response_id or said.request_id


def open_bandit_store(config: Config, index: int) -> BanditStore:
    """Redis where machines share one, else files of the run directory. Every start is another writer."""
    writer = f"{index}-{secrets.token_hex(6)}"
    if config.storage.redis_url:
        from cache.link import RedisLink

        return RedisBanditStore(RedisLink(str(config.storage.redis_url), timeout_s=SHARE_EVERY_S), writer)
    return FolderBanditStore(config.server.run_dir, writer)


def bandit_of(router: Router | None) -> Bandit | None:
    """The route's bandit, behind a canary too."""
    if isinstance(router, Canary):
        router = router.incumbent
    return router if isinstance(router, Bandit) else None


def recalled(router: Router, config: Config, route: str) -> Router:
    """The route's router with what its bandit knows by now: for whoever asks from outside the workers."""
    bandit = bandit_of(router)
    if bandit is not None:
        bandit.set_others(added(read_states(config, key_of(route, bandit)), bandit.projection.dims))
    return router


def key_of(route: str, bandit: Bandit | StrategyBandit) -> str:
    """What was learnt upon one base says nothing upon another."""
    what = f"{route}\0{bandit.version}\0{bandit.features_version}\0{bandit.projection.dims}"
    if isinstance(bandit, Bandit) and bandit.base.taught_by:
        what += f"\0{bandit.base.taught_by}"
    return hashlib.sha256(what.encode()).hexdigest()[:24]


def added(found: Sequence[bytes], dims: int) -> BanditState | None:
    """The sum of those sums; what can't be read is left out, loudly."""
    total: BanditState | None = None
    for data in found:
        try:
            one = BanditState.from_bytes(data, dims)
        except ValueError as error:
            log.warning("a replica's sums are left out: %s", error)
            continue
        total = one if total is None else total.merged(one)
    return total


def query_of(record: DecisionRecord) -> Query | None:
    """As the router saw it, in half precision; None where no vector was kept."""
    if not record.vector:
        return None
    return Query(
        record.prompt_text, unpacked(record), record.features_version,
        record.input_tokens, record.max_output_tokens, record.turns, record.tools, record.images, record.wants_json,
    )  # fmt: skip
