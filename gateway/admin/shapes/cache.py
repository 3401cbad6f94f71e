"""The cache: how often it answers, how often wrongly, and what is in it."""

from __future__ import annotations

from pydantic import BaseModel

from gateway.admin.shapes.common import Interval


class CacheRoute(BaseModel):
    """One route's cache over a window. False-hit figures are of the semantic tier, over all workers."""

    route: str
    kind: str
    """none | exact | semantic"""
    requests: int
    exact_hits: int
    shared_hits: int
    """Answered by another request's call that was under way."""
    semantic_hits: int
    hit_share: float
    saved_usd: float
    bound: float
    """`cache_eps`: the most that false hits may be."""
    false_hits: Interval | None
    """Audited; None: no hit was audited yet."""
    audited: int
    threshold: float | None
    """Least score that serves; None: nothing is served semantically yet."""
    judge_usd: float
    ttl_s: float


class CacheWorker(BaseModel):
    """One worker's store."""

    worker: str
    entries: int
    used_bytes: int
    hits: int
    misses: int
    evicted: int
    refused: int
    failures: int


class CacheSummary(BaseModel):
    """`shared`: all workers use one store (Redis), so its entries are listed once."""

    routes: list[CacheRoute]
    workers: list[CacheWorker]
    entries: int
    used_bytes: int
    max_bytes: int
    shared: bool
    silent: list[str] = []
    """Workers that did not answer."""


class CacheEntry(BaseModel):
    """One answer. Question and answer are shown to operators and admins only."""

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
    """Known for the semantic tier's entries; at most 200 characters."""
    answer: str
    """At most 200 characters."""
    workers: list[str]


class CacheEntries(BaseModel):
    """Newest first."""

    data: list[CacheEntry]
    total: int
    """Entries that match, over all workers."""
    truncated: bool
    silent: list[str] = []
    unlisted: str = ""
    """Why a store can't list its entries; a known id can be deleted all the same."""


class CacheDeleted(BaseModel):
    """`confirmed` of `workers` have forgotten it; the others will before their next request after they answer."""

    id: str
    deleted: bool
    workers: int
    confirmed: int
