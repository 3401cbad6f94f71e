"""Which lines ask the same: they are answered once.

Exact and semantic alike follow the live cache: its key, its rules of what may share an answer, its learned and
guarded acceptance, its partitions. A route that doesn't cache shares nothing unless the job says that equal lines are
one. The semantic rule is the one that the route has learnt; before it has learnt any, no other words are the same.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal

from cache.acceptance import Acceptance
from cache.entry import Entry
from cache.key import Partition, exact_key, partition_key
from cache.memory import MemoryStore
from cache.rules import Rules, may_cache, may_cache_semantically, read_directive
from cache.semantic import Miss, SemanticCache
from gateway.batch.read import Request
from routers.features import Featurizer

Mode = Literal["route", "exact", "none"]
"""As the cache of each line's route says; equal lines whatever it says; never."""
RULES = Rules()
_FOREVER_S = 1e12


def keys_of(request: Request, tenant: str, mode: Mode, embedder: str) -> tuple[bytes, Partition | None]:
    """The exact key, empty where the line shares its answer with no other, and where to look for other words."""
    call, config = request.call, request.route.config
    offered = "exact" if mode == "exact" and config.cache == "none" else config.cache
    directive = None if mode == "none" else read_directive(call.wishes.cache, offered)
    if directive is None or not (directive.look_up and directive.store):
        return b"", None
    if may_cache(call.raw, RULES, surface=call.surface):
        return b"", None
    scope = request.route.scope
    key = exact_key(tenant=tenant, scope=scope, surface=call.surface, body=call.raw)
    if mode != "route" or not directive.semantic or may_cache_semantically(call.raw, RULES, surface=call.surface):
        return key, None
    return key, partition_key(tenant=tenant, scope=scope, surface=call.surface, body=call.raw, embedder=embedder)


class Deduper:
    """Remembers what was asked. `acceptances`: by route, the rules that the live cache has learnt."""

    def __init__(self, featurizer: Featurizer, acceptances: Mapping[str, Acceptance] | None = None) -> None:
        self._featurizer = featurizer
        self._rules = acceptances or {}
        self._exact: dict[bytes, tuple[int, float]] = {}
        self._semantic: dict[str, SemanticCache] = {}
        self._missed: Miss | None = None

    def find(self, key: bytes, question: Partition | None, route: str, floor: float) -> tuple[int, str] | None:
        """The prompt whose answer will do, and why: exact or semantic. One of a lower floor will not."""
        same = self._exact.get(key) if key else None
        if same is not None and same[1] >= floor:
            return same[0], "exact"
        self._missed = None
        cache = self._cache_of(route) if question is not None and same is None else None
        if cache is None or question is None:
            return None
        vector = self._featurizer.embed(question.text)
        found = cache.propose(question, vector, tenant="", now_s=0.0)
        if isinstance(found, Miss):
            self._missed = found
            return None
        index, its_floor = self._exact[found[0].key]
        return (index, "semantic") if its_floor >= floor else None

    def add(self, key: bytes, question: Partition | None, route: str, floor: float, index: int) -> None:
        """The prompt `index` is answered; call it right after `find` has found nothing."""
        if not key:
            return
        self._exact[key] = (index, floor)
        cache = self._cache_of(route) if question is not None else None
        if cache is not None and question is not None:
            entry = Entry(f"prompt-{index}", "", b"", "", "", 0.0, _FOREVER_S, cost_usd=0.0, tenant="")
            cache.record(question, self._featurizer.embed(question.text), entry, key=key, miss=self._missed)

    def _cache_of(self, route: str) -> SemanticCache | None:
        """The job's own index under the route's rule; None where the rule accepts nothing yet."""
        learned = self._rules.get(route)
        if learned is None or learned.fitted is None:
            return None
        cache = self._semantic.get(route)
        if cache is None:
            size = self._featurizer.embed("").shape[0]
            cache = SemanticCache(MemoryStore(1), dimension=size, terms=learned.terms, rng=random.Random(0))
            cache.acceptance.fitted = learned.fitted
            self._semantic[route] = cache
        return cache
