"""The cache: hit rates from the rollups, false hits from the workers' audits, and the search and deletion of entries.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query

from cache.acceptance import beta_upper
from gateway.admin.actor import Actor, may
from gateway.admin.changes import database
from gateway.admin.guard import Operator, Services, Viewer
from gateway.admin.overview import LENGTH_S, STEP_S
from gateway.admin.services import AdminServices
from gateway.admin.shapes.cache import CacheDeleted, CacheEntries, CacheEntry, CacheRoute, CacheSummary, CacheWorker
from gateway.admin.shapes.common import Interval, Window
from gateway.admin.worker_sockets import ask_all
from gateway.config.types import RouteConfig
from gateway.errors import HeadgateError, NotFound
from gateway.journal.sums import Sums, sums

router = APIRouter(prefix="/admin/cache", tags=["cache"])
UNLISTED = "this store can't list its entries; an entry whose id is known from a decision can still be deleted"
MOST = 2000
"""Most entries that one worker is asked for."""
_COUNTED = (
    "requests", "exact_hits", "shared_hits", "semantic_hits", "saved_nanousd", "judge_nanousd",
)  # fmt: skip


def summary(services: AdminServices, window: Window = "day") -> CacheSummary:
    """The routes that have a cache, or had hits in the window. False-hit figures are since the workers started."""
    until_s = (int(time.time()) // STEP_S[window] + 1) * STEP_S[window]
    with database():
        rows = sums(services.store, STEP_S[window], until_s - LENGTH_S[window], until_s, by=("route",), names=_COUNTED)
    answers, silent = ask_all(services.run_dir, {"ask": "cache"})
    workers = [_worker(name, answer["store"]) for name, answer in answers.items()]
    by_route = {row["route"]: row for row in rows}
    config = services.current
    shared = bool(config.storage.redis_url) or config.server.workers > 1
    pooled = max if shared else sum
    return CacheSummary(
        routes=[
            _route(one, by_route.get(one.name), answers, bool(config.storage.redis_url))
            for one in config.routes
            if one.cache != "none" or _hits(by_route.get(one.name))
        ],
        workers=workers, entries=pooled([one.entries for one in workers] or [0]),
        used_bytes=pooled([one.used_bytes for one in workers] or [0]),
        max_bytes=config.server.cache_bytes * (1 if shared else max(1, len(workers))), shared=shared, silent=silent,
    )  # fmt: skip


def entries(
    services: AdminServices, who: Actor, query: str = "", tenant: str = "", model: str = "", limit: int = 100,
    offset: int = 0
) -> CacheEntries:
    """Entries whose ids, question or answer contain `query`, newest first. A viewer neither sees nor searches text."""
    reads_text = may(who, "operator")
    request = {"ask": "entries", "query": query, "tenant": tenant, "model": model, "text": reads_text,
               "limit": min(limit + offset, MOST)}  # fmt: skip
    answers, silent = ask_all(services.run_dir, request)
    found: dict[str, dict[str, Any]] = {}
    for worker, answer in answers.items():
        for entry in answer["data"]:
            found.setdefault(entry["id"], {**entry, "workers": []})["workers"].append(worker)
    ordered = sorted(found.values(), key=lambda entry: -entry["created_s"])
    listed = all(answer["listed"] for answer in answers.values())
    total = max(len(found), *(answer["total"] for answer in answers.values())) if answers else 0
    return CacheEntries(
        data=[_entry(entry, reads_text) for entry in ordered[offset : offset + limit]], total=total,
        truncated=total > offset + limit, silent=silent, unlisted="" if listed else UNLISTED,
    )  # fmt: skip


def delete_entry(services: AdminServices, who: Actor, id: str) -> CacheDeleted:
    """Delete an entry in every worker before its next request. Raises NotFound where no worker has it."""
    answers, silent = _ask_to_forget(services, {"ask": "forget", "id": id})
    if not any(answers.values()):
        raise NotFound(f"no cache entry has the id {id!r}")
    with database():
        services.store.note(who.name, "cache.delete", id)
    return CacheDeleted(id=id, deleted=True, workers=len(answers) + len(silent), confirmed=len(answers))


def delete_tenant(services: AdminServices, who: Actor, tenant: str) -> CacheDeleted:
    """Delete all entries of a tenant."""
    answers, silent = _ask_to_forget(services, {"ask": "forget", "tenant": tenant})
    with database():
        services.store.note(who.name, "cache.delete_tenant", tenant)
    return CacheDeleted(
        id=tenant, deleted=all(answers.values()), workers=len(answers) + len(silent),
        confirmed=sum(map(bool, answers.values())),
    )  # fmt: skip


def _ask_to_forget(services: AdminServices, request: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The workers' answers by worker, and the workers that gave none. Raises HeadgateError where all are silent."""
    answers, silent = ask_all(services.run_dir, request)
    if not answers:
        raise HeadgateError("no worker answers, so nothing was deleted; try again in a moment", status=503,
                            code="workers_away", retry_after_s=1.0)  # fmt: skip
    return answers, silent


def _worker(name: str, store: Mapping[str, Any]) -> CacheWorker:
    return CacheWorker(worker=name, **{field: store[field] for field in CacheWorker.model_fields if field in store})


def _route(route: RouteConfig, row: Sums | None, answers: Mapping[str, Any], shared: bool) -> CacheRoute:
    counts: Mapping[str, int] = row or defaultdict(int)
    audits = [one for answer in answers.values() if (one := answer["routes"].get(route.name)) is not None]
    if shared:  # workers share their verdicts through Redis, so the one with the most audits has them all
        audits = sorted(audits, key=lambda one: -one["audited"])[:1]
    audited, wrong = sum(one["audited"] for one in audits), sum(one["wrong"] for one in audits)
    thresholds = [one["threshold"] for one in audits if one["threshold"] is not None]
    return CacheRoute(
        route=route.name, kind=route.cache, requests=counts["requests"], exact_hits=counts["exact_hits"],
        shared_hits=counts["shared_hits"], semantic_hits=counts["semantic_hits"],
        hit_share=_hits(row) / max(counts["requests"], 1), saved_usd=counts["saved_nanousd"] / 1e9,
        bound=route.cache_eps,
        false_hits=false_hits(wrong, audited), audited=audited, threshold=min(thresholds, default=None),
        judge_usd=counts["judge_nanousd"] / 1e9, ttl_s=route.cache_ttl_s,
    )  # fmt: skip


def _hits(row: Sums | None) -> int:
    return 0 if row is None else int(row["exact_hits"] + row["shared_hits"] + row["semantic_hits"])


def false_hits(wrong: float, audited: int) -> Interval | None:
    """Share of audited hits that were wrong, with its 95 % Clopper-Pearson interval; None without an audit."""
    if not audited:
        return None
    import numpy as np

    high = float(beta_upper(np.array([wrong]), np.array([audited - wrong]), 0.975)[0])
    low = 1.0 - float(beta_upper(np.array([audited - wrong]), np.array([wrong]), 0.975)[0])
    return Interval(value=wrong / audited, low=max(0.0, low), high=min(1.0, high))


def _entry(entry: dict[str, Any], reads_text: bool) -> CacheEntry:
    hidden = {} if reads_text else {"question": "", "answer": ""}
    return CacheEntry(**{**entry, **hidden})


@router.get("")
def get_summary(services: Services, who: Viewer, window: Window = "day") -> CacheSummary:
    """Hit rates, audited false hits and stores of the cache."""
    return summary(services, window)


@router.get("/entries")
def get_entries(
    services: Services, who: Viewer, query: str = "", tenant: str = "", model: str = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100, offset: Annotated[int, Query(ge=0, le=1000)] = 0,
) -> CacheEntries:
    """List cache entries, newest first."""
    return entries(services, who, query, tenant, model, limit, offset)


@router.delete("/entries/{id}")
def delete_one(services: Services, who: Operator, id: str) -> CacheDeleted:
    """Delete a cache entry; every worker drops it before its next request."""
    return delete_entry(services, who, id)


@router.delete("/tenants/{tenant:path}")
def delete_all(services: Services, who: Operator, tenant: str) -> CacheDeleted:
    """Delete all cache entries of a tenant."""
    return delete_tenant(services, who, tenant)
