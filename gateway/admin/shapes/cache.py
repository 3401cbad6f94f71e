"""The cache: its hit rates, false-hit rates and entries."""

from __future__ import annotations

from pydantic import BaseModel

from gateway.admin.shapes.common import Interval


class CacheRoute(BaseModel):
    """The cache of one route in a time window. False-hit figures are of the semantic tier, over all workers."""

    route: str
    kind: str
    """none | exact | semantic"""
    requests: int
    exact_hits: int
    shared_hits: int
    """Requests answered by an identical request's call that was already under way."""
    semantic_hits: int
    hit_share: float
    saved_usd: float
    bound: float
    """The route's `cache_eps`: the largest share of false hits that is allowed."""
    false_hits: Interval | None
    """Share of false hits among audited hits; None where no hit was audited yet."""
    audited: int
    threshold: float | None
    """Least score of a semantic hit; None where the semantic tier answers nothing yet."""
    judge_usd: float
    ttl_s: float


class CacheWorker(BaseModel):
    """The cache store of one worker."""

    worker: str
    entries: int
    used_bytes: int
    hits: int
    misses: int
    evicted: int
    refused: int
    failures: int


class CacheSummary(BaseModel):
    """The whole cache. `shared`: all workers use one store, so its entries are counted once."""

    routes: list[CacheRoute]
    workers: list[CacheWorker]
    entries: int
    used_bytes: int
    max_bytes: int
    shared: bool
    silent: list[str] = []
    """Workers that did not answer."""


class CacheEntry(BaseModel):
    """A cached answer. Question and answer are shown to operators and admins only."""

    id: str
    tenant: str
    model: str
    surface: str
    decision_id: str
    created_s: float
    expires_s: float
    cost_usd: float
    size_bytes: int
    question: str
    """Known for entries of the semantic tier only; at most 200 characters."""
    answer: str
    """At most 200 characters."""
    workers: list[str]


class CacheEntries(BaseModel):
    """A page of entries, newest first."""

    data: list[CacheEntry]
    total: int
    """Number of entries that match, over all workers."""
    truncated: bool
    silent: list[str] = []
    unlisted: str = ""
    """Why the store can't list its entries; empty where it can. A known id can still be deleted."""


class CacheDeleted(BaseModel):
    """A deletion that `confirmed` of `workers` have carried out; the others do so before they answer from the cache."""

    id: str
    deleted: bool
    workers: int
    confirmed: int
