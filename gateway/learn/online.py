"""Bandits that learn while they serve: each scored answer updates the estimates for the next request.

A score comes from feedback; a failed automatic check gives 0, with the probability with which answers get feedback at
all. On a route without any feedback an answer is scored by its checks where one examined its contents; nothing is
learnt from the others, because an answer without a fault need not be good. Every worker keeps the sums of what it has
learnt itself and reads those of the others (gateway/learn/bandit_store.py), so that all workers decide by the same sums
within a second or two and nothing is counted twice. Left out are cache hits, requests that the client cancelled, and
cascades of several steps, whose kept answers are the better ones of their model.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections import OrderedDict, deque
from collections.abc import Sequence

from gateway.config.types import Config
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
"""Decisions that are kept in memory, so that their feedback needs no query of the journal."""


class Learner:
    """Teaches one route's bandit in this worker."""

    def __init__(self, bandit: Bandit | StrategyBandit, candidates: Sequence[Candidate]) -> None:
        self.bandit, self.candidates, self.key_shares = bandit, candidates, KeyShares(1.0)
        self.decided = self.scored = self.checked = 0
        self.learnt: OrderedDict[str, float] = OrderedDict()
        """The learnt scores by decision id; a later score of the same decision replaces the earlier one."""
        self.changed = False

    def outcome(self, record: DecisionRecord) -> None:
        """Learn from the automatic checks of a settled decision, where they count."""
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
        """Learn the score unless its key has more than its share of scores; a corrected score is always learnt."""
        if record.id in self.learnt or self.key_shares.heard(record):
            self.learn(record, score)

    def learn(self, record: DecisionRecord, score: float) -> None:
        """Update the estimates of the model that answered, or of the chosen one where none did. Nothing is learnt about
        a model that the route no longer has.
        """
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
                bandit.amend(query, candidates, model, before, score)
        except Undecided:
            return
        self.remember(record.id, score)

    def remember(self, id: str, score: float) -> None:
        self.learnt[id] = score
        if len(self.learnt) > REMEMBERED:
            self.learnt.popitem(last=False)
        self.changed = True


class StrategyLearner(Learner):
    """Teaches one route's bandit of strategies in this worker, from each answer's score and number of calls."""

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
            self.strategies.amend(vector, record.strategy, before, score)
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
        """Learners by key, including those of former routers, so that a reload forgets nothing."""
        self._routes: dict[str, list[Learner]] = {}
        self._recent: OrderedDict[str, DecisionRecord] = OrderedDict()
        self._waiting: deque[FeedbackRecord] = deque(maxlen=REMEMBERED)
        """Feedback on decisions that only the journal has; it is looked up in the background."""

    def adopt(self, book: RouteBook) -> None:
        """Take over the bandits of a new route book; each continues with what was learnt on the same base."""
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
        """Learn from a settled request."""
        learners = self._routes.get(record.route)
        if learners is not None:
            for learner in learners:
                learner.outcome(record)
            self._remember(record)

    def feedback(self, said: FeedbackRecord) -> None:
        """Learn from feedback on an answer of any worker."""
        if said.score is None or not self._routes:
            return
        record = self._recent.get(_name_of(said))
        if record is None:
            self._waiting.append(said)
        else:
            self._hear(said, record)

    def _hear(self, said: FeedbackRecord, record: DecisionRecord) -> None:
        if said.score is not None and said.tenant in (record.tenant, ANY_TENANT):
            for learner in self._routes.get(record.route, ()):
                learner.feedback(record, said.score)

    async def catch_up(self) -> None:
        """Learn from feedback on decisions that this worker doesn't have in memory, until cancelled. While the journal
        can't be read, the feedback waits.
        """
        while True:
            while self._waiting:
                said = self._waiting.popleft()
                try:
                    record = await self._journal.decision(_name_of(said), said.tenant or None)
                except (HeadgateError, OSError) as error:
                    self._waiting.appendleft(said)
                    log.warning("feedback on %d answers is not learnt from yet: %s", len(self._waiting), error)
                    break
                if record is not None:
                    self._hear(said, record)
            await asyncio.sleep(SHARE_EVERY_S)

    async def run(self) -> None:
        """Publish this worker's sums and read those of the others, until cancelled."""
        while True:
            for key, learner in list(self._learners.items()):
                try:
                    await self._exchange(key, learner)
                except OSError as error:
                    log.warning("what bandits learnt is not shared now: %s", error)
            await asyncio.sleep(SHARE_EVERY_S)

    async def close(self) -> None:
        """Publish the last sums and close the store."""
        for key, learner in self._learners.items():
            if learner.changed:
                await self._store.publish(key, learner.bandit.state.to_bytes())
        await self._store.close()

    def answers(self) -> dict[tuple[str, ...], float]:
        """Number of scored answers that each route's bandit has learnt from."""
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
    """The store in Redis where one is configured, else in the run directory. Every start of a worker is a new writer.
    """
    writer = f"{index}-{secrets.token_hex(6)}"
    if config.storage.redis_url:
        from cache.link import RedisLink

        return RedisBanditStore(RedisLink(str(config.storage.redis_url), timeout_s=SHARE_EVERY_S), writer)
    return FolderBanditStore(config.server.run_dir, writer)


def bandit_of(router: Router | None) -> Bandit | None:
    """The route's bandit, also where it is a canary's incumbent; None where the router is no bandit."""
    if isinstance(router, Canary):
        router = router.incumbent
    return router if isinstance(router, Bandit) else None


def recalled(router: Router, config: Config, route: str) -> Router:
    """The route's router with the sums that the workers' bandits have published, for use outside the workers."""
    bandit = bandit_of(router)
    if bandit is not None:
        bandit.set_others(added(read_states(config, key_of(route, bandit)), bandit.projection.dims))
    return router


def key_of(route: str, bandit: Bandit | StrategyBandit) -> str:
    """The key of a bandit's sums. Bandits on different bases have different keys, because sums are only valid on one.
    """
    what = f"{route}\0{bandit.version}\0{bandit.features_version}\0{bandit.projection.dims}"
    if isinstance(bandit, Bandit) and bandit.base.taught_by:
        what += f"\0{bandit.base.taught_by}"
    return hashlib.sha256(what.encode()).hexdigest()[:24]


def added(found: Sequence[bytes], dims: int) -> BanditState | None:
    """The total of the published sums; unreadable ones are left out with a warning. None where there are none."""
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
    """The query as the router saw it, but in half precision; None where no vector was stored."""
    if not record.vector:
        return None
    return Query(
        record.prompt_text, unpacked(record), record.features_version,
        record.input_tokens, record.max_output_tokens, record.turns, record.tools, record.images, record.wants_json,
    )  # fmt: skip
