"""Finds lines that ask the same, so that they are answered once.

Both exact and semantic matches follow the live cache: its key, its rules of what may share an answer, its learnt and
guarded acceptance, its partitions. On a route that doesn't cache, lines share no answers unless the job asks for exact
matches. The semantic rule is the route's learnt one; until it has one, only equal prompts are the same.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from cache.acceptance import Acceptance
from cache.entry import Entry
from cache.guard import Guard
from cache.key import KEY_BYTES, Partition, canonical, exact_key, partition_key
from cache.memory import MemoryStore
from cache.rules import Rules, may_cache, may_cache_semantically, read_directive
from cache.semantic import Miss, SemanticCache
from gateway.batch.read import Request
from routers.features import Featurizer

Mode = Literal["route", "exact", "none"]
"""route: as the cache of each line's route does; exact: equal lines on any route; none: never."""
RULES = Rules()
_FOREVER_S = 1e12


@dataclass(frozen=True, slots=True)
class Shared:
    """The parts of a cache key that chats with the same options share."""

    prefix: bytes = b""
    """Key of all fields but the messages; empty where such chats share no answers."""
    room: int = 0
    """Most bytes that the messages may have to share an answer."""
    semantic: bool = False


def keys_of(request: Request, tenant: str, mode: Mode, embedder: str) -> tuple[bytes, Partition | None]:
    """The exact key of the line's answer, empty where the line shares no answers, and its partition of the semantic
    index, None where only equal lines are the same.

    The keys of two lines are equal where the live cache's keys are, apart from knobs: a job chooses models by its
    budget, and `Deduper.find` compares the floors. Keys are valid within one job only.
    """
    mould, call = request.mould, request.call
    shared = mould.shared if mould is not None else None
    if not isinstance(shared, Shared):
        shared = _shared(request, tenant, mode)
        if mould is not None:
            mould.shared = shared
    messages = call.raw.get("messages", b"")
    if not shared.prefix or len(memoryview(messages)) > shared.room:
        return b"", None
    key, scope = _key(shared.prefix, request), request.route.scope
    if not shared.semantic:
        return key, None
    return key, partition_key(tenant=tenant, scope=scope, surface=call.surface, body=call.raw, embedder=embedder)


def _shared(request: Request, tenant: str, mode: Mode) -> Shared:
    call, config = request.call, request.route.config
    kind = "exact" if mode == "exact" and config.cache == "none" else config.cache
    directive = None if mode == "none" else read_directive(call.options.cache, kind)
    if directive is None or not (directive.look_up and directive.store):
        return Shared()
    others = {name: value for name, value in call.raw.items() if name != "messages"}
    if may_cache(others, RULES, surface=call.surface):
        return Shared()
    prefix = exact_key(tenant=tenant, scope=request.route.scope, surface=call.surface, body=others)
    room = RULES.max_request_bytes - sum(len(memoryview(value)) for value in others.values())
    semantic = mode == "route" and directive.semantic
    return Shared(prefix, room, semantic and not may_cache_semantically(others, RULES, surface=call.surface))


def _key(prefix: bytes, request: Request) -> bytes:
    messages = bytes(request.call.raw.get("messages", b"null"))
    return blake2b(canonical(messages), digest_size=KEY_BYTES, key=prefix).digest()


class Deduper:
    """Remembers the prompts of a job. `acceptances`: the rules that the live caches have learnt, by route."""

    def __init__(self, featurizer: Featurizer, acceptances: Mapping[str, Acceptance] | None = None) -> None:
        self._featurizer = featurizer
        self._rules = acceptances or {}
        self._exact: dict[bytes, tuple[int, float]] = {}
        self._semantic: dict[str, SemanticCache] = {}
        self._missed: Miss | None = None

    def find(self, key: bytes, question: Partition | None, route: str, floor: float) -> tuple[int, str] | None:
        """Index of an earlier prompt that asks the same, and the kind of match (exact or semantic). A prompt with a
        lower floor than `floor` doesn't count.
        """
        same = self._exact.get(key) if key else None
        if same is not None and same[1] >= floor:
            return same[0], "exact"
        self._missed = None
        cache = self._cache_of(route) if question is not None and same is None else None
        if cache is None or question is None:
            return None
        vector = self._featurizer.embed(question.text)
        match = cache.propose(question, vector, tenant="", now_s=0.0)
        if isinstance(match, Miss):
            self._missed = match
            return None
        index, matched_floor = self._exact[match[0].key]
        return (index, "semantic") if matched_floor >= floor else None

    def add(self, key: bytes, question: Partition | None, route: str, floor: float, index: int) -> None:
        """Remember the prompt `index`. Call it right after `find` has returned None for the same prompt."""
        if not key:
            return
        self._exact[key] = (index, floor)
        cache = self._cache_of(route) if question is not None else None
        if cache is not None and question is not None:
            entry = Entry(f"prompt-{index}", "", b"", "", "", 0.0, _FOREVER_S, cost_usd=0.0, tenant="")
            cache.record(question, self._featurizer.embed(question.text), entry, key=key, miss=self._missed)

    def is_new(self, keys: Sequence[bytes]) -> bool:
        """Whether none of these keys was added before."""
        return self._exact.keys().isdisjoint(keys)

    def add_all(self, keys: Sequence[bytes], floors: Sequence[float], index: int) -> None:
        """Remember the prompts from `index` on, whose keys are all new and which have no partition of the semantic
        index.
        """
        answers = zip(range(index, index + len(keys)), floors, strict=True)
        self._exact.update((key, answer) for key, answer in zip(keys, answers, strict=True) if key)

    def _cache_of(self, route: str) -> SemanticCache | None:
        """The job's own semantic index under the route's rule; None where the route has learnt no rule yet."""
        learned = self._rules.get(route)
        if learned is None or learned.fitted is None:
            return None
        cache = self._semantic.get(route)
        if cache is None:
            size = self._featurizer.embed("").shape[0]
            acceptance = Acceptance(learned.options, random.Random(0))
            acceptance.fitted = learned.fitted
            cache = SemanticCache(MemoryStore(1), dimension=size, acceptance=acceptance, guard=Guard(same_script=True))
            self._semantic[route] = cache
        return cache
