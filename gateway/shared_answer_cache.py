"""The answer cache of several workers: one store for all of them, and only one of them sends a missed request upstream.

With Redis all replicas share answers, leases and what semantic caches learn. A lease decides which worker sends a
request upstream. What one replica records, deletes or judges reaches the others within a quarter of a second. A deleted
entry is never served even before that, because a hit needs its entry in the shared store. Without Redis, the workers of
one machine share a file.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from cache.acceptance import Acceptance, AcceptanceOptions
from cache.entry import Entry
from cache.flight import Flight, LookUp
from cache.lease import RedisLease
from cache.link import RedisLink
from cache.pair_rule import PairRule
from cache.redis import RedisStore
from cache.replicate import Replication
from cache.semantic import SemanticCache
from cache.vector_sets import VectorSets, has_vector_sets
from gateway.answer_cache import AnswerCache, Similar
from gateway.exchange import Exchange
from gateway.routes import Route
from routers.features import Featurizer

log = logging.getLogger("headgate.cache")

LONGEST_LOOK_S = 0.1
"""A look-up that takes longer is a miss."""
FOLLOW_EVERY_S = 0.25
TELL_WITHIN_S = 1.0
"""Timeout of a message to other replicas, for which no request waits."""


class SharedAnswerCache(AnswerCache):
    """The shared answer cache as one worker uses it."""

    def __init__(
        self,
        redis_url: str,
        timeout_s: float,
        featurizer: Callable[[], Featurizer],
        slow: Featurizer | None = None,
        pair_rules: Mapping[str, PairRule] | None = None,
        *,
        vectors_in_redis: bool = False,
    ) -> None:
        self._link = RedisLink(redis_url, timeout_s=timeout_s)
        self._slow_link = RedisLink(redis_url, timeout_s=max(timeout_s, TELL_WITHIN_S), connections=8)
        super().__init__(RedisStore(self._link), featurizer, slow, pair_rules)
        self.flight = Flight(RedisLease(self._link))
        self._replications: dict[str, Replication] = {}
        self._sets: dict[str, VectorSets] = {}
        """By route, the vector sets in Redis; empty where every replica has an index of its own."""
        self._wants_sets = vectors_in_redis
        self._probed = False
        self._closing = False
        self._following: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[bool]] = set()

    def finder(self, exchange: Exchange, clock: Callable[[], float]) -> LookUp | None:
        """A function that looks up whether another replica has stored the answer meanwhile."""
        key, tenant = exchange.cache_key, exchange.caller.tenant

        async def look_up() -> Entry | None:
            return await self.store.get(key, tenant=tenant, now_s=clock())

        return look_up

    def semantic_of(self, route: Route) -> SemanticCache:
        cache = self._semantic.get(route.name)
        if cache is None:
            featurizer = self._featurizer()
            if self._wants_sets:
                self._sets[route.name] = VectorSets(self._link, route=route.name, embedder=featurizer.version)
            sets = self._sets.get(route.name)
            cache = self._semantic[route.name] = SemanticCache(
                self.store,
                dimension=self.dimension(),
                acceptance=Acceptance(AcceptanceOptions(eps=route.config.cache_eps)),
                guard=self._guard(),
                on_verdict=lambda *verdict: self._tell(self._replications[route.name].tell_judged(*verdict)),
                sets=sets,
                pair_rule=self._pair_rules.get(route.name),
                on_forgotten=None if sets is None else lambda *gone: self._tell(sets.remove(*gone)),
            )
            self._replications[route.name] = Replication(
                self._slow_link, cache, route=route.name, embedder=featurizer.version
            )
            if self._following is None:
                self._following = asyncio.create_task(self._follow())
        return cache

    async def find(self, exchange: Exchange, now_s: float) -> bool:
        if self._wants_sets and not self._probed:
            await self._probe()
        return await super().find(exchange, now_s)

    async def _probe(self) -> None:
        """Find out, once before the first look-up, whether Redis supports vector sets."""
        self._probed = True
        self._wants_sets = await has_vector_sets(self._slow_link)
        if not self._wants_sets:
            log.warning("Redis has no vector sets (version 8 has them): every replica keeps an index of its own")

    def recorded(self, exchange: Exchange, similar: Similar, entry: Entry) -> None:
        replication, sets = self._replications[exchange.route.name], self._sets.get(exchange.route.name)
        question, vector = similar.question, similar.vector
        self._tell(replication.tell_recorded(question, vector, entry, key=exchange.cache_key))
        if sets is not None:
            self._tell(sets.add(question.key, entry.id, vector, ttl_s=entry.ttl_s))

    async def delete(self, entry_id: str, *, tenant: str | None) -> bool:
        deleted = await super().delete(entry_id, tenant=tenant)
        for replication in self._replications.values():
            self._tell(replication.tell_deleted(entry_id=entry_id, tenant=tenant))
        return deleted

    async def delete_tenant(self, tenant: str) -> bool:
        deleted = await super().delete_tenant(tenant)
        for replication in self._replications.values():
            self._tell(replication.tell_deleted(tenant=tenant))
        return deleted

    async def close(self) -> None:
        self._closing = True  # a client may take a cancellation during a command for a fault of Redis
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait((self._following,), timeout=2 * TELL_WITHIN_S)
        await asyncio.gather(*self._telling, return_exceptions=True)
        await super().close()
        await self._link.close()
        await self._slow_link.close()

    def _tell(self, telling: Coroutine[Any, Any, bool]) -> None:
        """Send a message in the background. If it fails, other replicas' indexes lack it, but the store doesn't."""
        task = asyncio.create_task(telling)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _follow(self) -> None:
        while not self._closing:
            behind = [await replication.follow() for replication in list(self._replications.values())]
            await asyncio.sleep(0 if any(behind) else FOLLOW_EVERY_S)
