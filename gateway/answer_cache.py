"""The cache as the request path uses it: look up, serve, store and delete answers. There is one per worker.

The exact tier is a store of whole answers. The semantic tier, on routes that configure it, proposes entries of the same
store for questions in other words, within the route's bound on false hits (`cache_eps`). gateway/audit.py judges its
hits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cache.acceptance import Acceptance, AcceptanceOptions
from cache.entry import Entry, Hit
from cache.flight import Flight, LookUp
from cache.guard import Guard
from cache.key import Partition, partition_key
from cache.memory import MemoryStore
from cache.pair_rule import PairRule
from cache.rules import Rules, may_cache_semantically
from cache.semantic import Comparison, Miss, SemanticCache
from cache.store import Store
from gateway.config.types import Config, RouteConfig
from gateway.embedders import EmbeddingFailed
from gateway.errors import ConfigError
from gateway.exchange import Exchange
from gateway.routes import Route
from routers.features import Featurizer
from routers.types import Vector

log = logging.getLogger("headgate.cache")

EMBED_AT_ONCE = 2
EMBED_WITHIN_S = 0.05
"""Longest wait of a request for its vector."""
LOG_AFTER = 5
"""Number of embeddings in a row that must fail before it is logged."""


@dataclass(frozen=True, slots=True)
class Similar:
    """A semantic look-up that found nothing to serve: the question and vector to store the new answer under."""

    question: Partition
    vector: Vector
    miss: Miss


def open_cache(config: Config, featurizer: Callable[[], Featurizer], slow: Featurizer | None = None) -> AnswerCache:
    """The cache: in memory for one worker, in a file for several, or in the Redis that all replicas share. `slow`: the
    configured embedder, None for the shipped table. Raises ConfigError.
    """
    pair_rules = open_pair_rules(config, slow.version if slow is not None else "the shipped table")
    if config.storage.redis_url:
        from gateway.shared_answer_cache import LONGEST_LOOK_S, SharedAnswerCache

        timeout_s = min(config.storage.redis_timeout_s, LONGEST_LOOK_S)
        in_redis = config.storage.redis_vectors
        url = str(config.storage.redis_url)
        return SharedAnswerCache(url, timeout_s, featurizer, slow, pair_rules, vectors_in_redis=in_redis)
    return AnswerCache(_own_store(config), featurizer, slow, pair_rules)


def open_pair_rules(config: Config, embedder: str) -> dict[str, PairRule]:
    """The pair rules by route. `embedder`: version of the cache's embedder. Raises ConfigError for a file that holds no
    rule, or one learned with another embedder.
    """
    rules, problems = {}, []
    for index, route in enumerate(config.routes):
        if route.cache_rule:
            try:
                rule = rules[route.name] = PairRule.load(Path(route.cache_rule))
            except (OSError, ValueError) as error:
                problems.append(f"routes[{index}].cache_rule: {error}")
                continue
            if rule.embedder not in embedder:
                problems.append(
                    f"routes[{index}].cache_rule: was learnt of vectors of {rule.embedder!r}, the cache compares by "
                    f"{embedder!r} (embedding.path, and embedding.cache = true)"
                )
    if problems:
        raise ConfigError(problems)
    return rules


def _own_store(config: Config) -> Store:
    if config.server.workers == 1:
        return MemoryStore(config.server.cache_bytes)
    from cache.sqlite import SqliteStore

    run_dir = Path(config.server.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    return SqliteStore(run_dir / "cache.db", max_bytes=config.server.cache_bytes)


class AnswerCache:
    """The exact and the semantic tier over one store. `featurizer` embeds questions; its version is part of every
    partition, so that vectors of different embedders never mix. `slow`, if given, replaces it: an embedder that takes
    milliseconds and runs in threads. A vector that comes too late is a miss.
    """

    def __init__(
        self,
        store: Store,
        featurizer: Callable[[], Featurizer],
        slow: Featurizer | None = None,
        pair_rules: Mapping[str, PairRule] | None = None,
    ) -> None:
        """`pair_rules`: the configured rules, by route."""
        self.store = store
        self.flight = Flight()
        self._featurizer = featurizer if slow is None else lambda: slow
        self._threads = ThreadPoolExecutor(EMBED_AT_ONCE, "embed") if slow is not None else None
        self._late: set[Future[Vector]] = set()
        """Embeddings under way whose requests no longer wait for them."""
        self._failed_in_a_row = 0
        """Number of embeddings in a row that were late or failed."""
        self._dimension = 0
        self._pair_rules = pair_rules or {}
        self._rules: dict[float, Rules] = {}
        self._semantic: dict[str, SemanticCache] = {}

    def finder(self, exchange: Exchange, clock: Callable[[], float]) -> LookUp | None:
        """A look-up for answers that other replicas store; None where there are no other replicas."""
        return None

    async def close(self) -> None:
        """Close the store."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        await self.store.close()

    def rules_of(self, config: RouteConfig) -> Rules:
        """The route's caching rules, which differ only in the time to live."""
        rules = self._rules.get(config.cache_ttl_s)
        if rules is None:
            rules = self._rules[config.cache_ttl_s] = Rules(ttl_s=config.cache_ttl_s)
        return rules

    @property
    def semantic(self) -> Mapping[str, SemanticCache]:
        """The semantic tiers opened so far, by route."""
        return self._semantic

    def semantic_of(self, route: Route) -> SemanticCache:
        """The semantic tier of a route, opened when first needed."""
        cache = self._semantic.get(route.name)
        if cache is None:
            options = AcceptanceOptions(eps=route.config.cache_eps)
            cache = self._semantic[route.name] = SemanticCache(
                self.store, dimension=self.dimension(), acceptance=Acceptance(options),
                guard=self._guard(), pair_rule=self._pair_rules.get(route.name),
            )  # fmt: skip
        return cache

    def _guard(self) -> Guard:
        """With the shipped embedder both questions must be in the same script: it knows few words outside Latin."""
        return Guard(same_script=self._threads is None)

    def dimension(self) -> int:
        """Dimension of the vectors. Of a slow embedder it is known from the first question's vector."""
        if not self._dimension:
            self._dimension = self._featurizer().embed("").shape[0]
        return self._dimension

    async def find(self, exchange: Exchange, now_s: float) -> bool:
        """Look for a fresh answer to this request, or to one of the same meaning. True if the exchange now has it."""
        directive = exchange.directive
        assert directive is not None
        entry = await self.store.get(exchange.cache_key, tenant=exchange.caller.tenant, now_s=now_s)
        if entry is not None and is_fresh(entry, exchange, now_s):
            self.serve(exchange, Hit(entry, "exact", why={"entry": entry.id}), "hit")
            return True
        return directive.semantic and await self._find_similar(exchange, now_s)

    async def _find_similar(self, exchange: Exchange, now_s: float) -> bool:
        call, route, tenant = exchange.call, exchange.route, exchange.caller.tenant
        if refusal := may_cache_semantically(call.raw, self.rules_of(route.config), surface=call.surface):
            return _miss(exchange, f"refused:{refusal}")
        featurizer = self._featurizer()
        question = partition_key(
            tenant=tenant, scope=exchange.scope, surface=call.surface, body=call.raw, embedder=featurizer.version
        )
        if question is None:
            return _miss(exchange, "form")
        vector = await self._vector(featurizer, question.text)
        if isinstance(vector, str):
            return _miss(exchange, vector)
        self._dimension = vector.shape[0]
        cache = self.semantic_of(route)
        result = await cache.look_up(question, vector, tenant=tenant, now_s=now_s)
        if isinstance(result, Hit) and not is_fresh(result.entry, exchange, now_s):
            if isinstance(comparison := result.why.get("comparison"), Comparison):
                cache.audit(comparison.row, None)
            result = Miss("old")
        if isinstance(result, Miss):
            exchange.similar, exchange.missed = Similar(question, vector, result), result
            return False
        comparison = result.why.pop("comparison", None)
        exchange.comparison = comparison if isinstance(comparison, Comparison) else None
        self.serve(exchange, result, "semantic")
        return True

    async def _vector(self, featurizer: Featurizer, text: str) -> Vector | str:
        """The text's vector, or the reason of the miss: `embedder_late`, `embedder_failed`, or `embedder_busy` while
        every thread is busy with a late embedding.
        """
        if self._threads is None:
            return featurizer.embed(text)
        self._late = {one for one in self._late if not one.done()}
        if len(self._late) >= EMBED_AT_ONCE:
            return "embedder_busy"
        embedding = self._threads.submit(featurizer.embed, text)
        try:
            async with asyncio.timeout(EMBED_WITHIN_S):
                vector = await asyncio.wrap_future(embedding)
        except TimeoutError:
            self._late.add(embedding)
            self._note_embedding(f"a vector takes longer than {EMBED_WITHIN_S * 1e3:.0f} ms")
            return "embedder_late"
        except EmbeddingFailed as error:
            self._note_embedding(str(error))
            return "embedder_failed"
        self._note_embedding("")
        return vector

    def _note_embedding(self, fault: str) -> None:
        """Count an embedding; `fault` is empty if it worked. Log once when LOG_AFTER in a row failed, and when they
        work again.
        """
        if not fault and self._failed_in_a_row >= LOG_AFTER:
            log.warning("the semantic cache has its vectors again")
        self._failed_in_a_row = self._failed_in_a_row + 1 if fault else 0
        if self._failed_in_a_row == LOG_AFTER:
            log.warning("the semantic cache finds nothing: %s", fault)

    def serve(self, exchange: Exchange, hit: Hit, state: str) -> None:
        """Answer the exchange with a cache entry."""
        exchange.hit, exchange.cache_state = hit, state
        exchange.answer_body, exchange.answered_by = hit.entry.body, hit.entry.model

    async def remember(self, exchange: Exchange, entry: Entry) -> Comparison | None:
        """Store an answer in both tiers. Returns the comparison with a similar entry that is to be judged, if any."""
        if not await self.store.put(exchange.cache_key, entry) or exchange.similar is None:
            return None
        similar, cache = exchange.similar, self.semantic_of(exchange.route)
        cache.record(similar.question, similar.vector, entry, key=exchange.cache_key, miss=similar.miss)
        self.recorded(exchange, similar, entry)
        return similar.miss.comparison

    def recorded(self, exchange: Exchange, similar: Similar, entry: Entry) -> None:
        """Called for each new entry of the semantic tier; a shared cache announces it to other replicas here."""

    async def delete(self, entry_id: str, *, tenant: str | None) -> bool:
        """Delete one entry; with `tenant`, only if it is that tenant's. True if it existed."""
        for cache in self._semantic.values():
            cache.delete(entry_id, tenant=tenant)
        return await self.store.delete(entry_id, tenant=tenant)

    async def delete_tenant(self, tenant: str) -> bool:
        """Delete all of a tenant's entries. False if the store failed."""
        for cache in self._semantic.values():
            cache.delete_tenant(tenant)
        return await self.store.delete_tenant(tenant)


def _miss(exchange: Exchange, why: str) -> bool:
    """Note why the semantic tier could not look. Returns False."""
    exchange.missed = Miss(why, recordable=False)
    return False


def is_fresh(entry: Entry, exchange: Exchange, now_s: float) -> bool:
    """True if the entry is no older than the request's max-age allows."""
    max_age_s = exchange.directive.max_age_s if exchange.directive is not None else None
    return max_age_s is None or now_s - entry.created_s <= max_age_s
