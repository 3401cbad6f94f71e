"""A job learns what the replicas' semantic caches have learned from each other."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import numpy as np

from cache.link import RedisLink
from cache.memory import MemoryStore
from cache.neighbours import FEATURES
from cache.replicate import Replication
from cache.semantic import SemanticCache
from gateway.batch.context import open_context
from gateway.batch.plan import PlanContext
from gateway.routes import RouteBook
from routers.features import shipped_featurizer
from tests.gateway.batch.planned import LARGE, SMALL, config, plan_context
from tests.gateway.redis_server import RedisServer


def opened(folder: Path, redis_url: str, cache: str = "semantic") -> PlanContext:
    chosen = config(
        folder,
        routes=[{"name": "auto", "models": [SMALL, LARGE], "cache": cache}],
        storage={"url": f"sqlite:///{folder}/journal.db", "redis_url": redis_url},
    )
    book: RouteBook = plan_context(folder, routes=[{"name": "auto", "models": [SMALL, LARGE], "cache": cache}]).book
    return open_context(chosen, book)


async def tell(redis_url: str, verdicts: int) -> None:
    """A replica that has judged this many pairs; those with a large first feature were equal."""
    link = RedisLink(redis_url, timeout_s=5.0)
    featurizer = shipped_featurizer()
    cache = SemanticCache(MemoryStore(1), dimension=featurizer.embed("").shape[0])
    replica = Replication(link, cache, route="auto", embedder=featurizer.version)
    rng = random.Random(0)
    for _ in range(verdicts):
        features = [rng.random() for _ in range(FEATURES)]
        assert await replica.tell_judged(features, features[0] > 0.5, 1.0, False)
    await link.close()


def test_a_job_may_have_no_semantic_rule(
    tmp_path: Path, redis_server: RedisServer,
) -> None:
    """Without verdicts, Redis or a semantic route nothing is merged by meaning."""
    assert not opened(tmp_path, redis_server.url).acceptances
    assert not opened(tmp_path, "").acceptances
    assert not opened(tmp_path, redis_server.url, "exact").acceptances


def test_verdicts_in_redis_become_the_jobs_rule(tmp_path: Path, redis_server: RedisServer) -> None:
    """It is fitted to all judged pairs, within the route's bound on false hits."""
    asyncio.run(tell(redis_server.url, 900))
    rules = opened(tmp_path, redis_server.url).acceptances
    rule = rules["auto"]
    sure, unsure = np.full(FEATURES, 0.5), np.full(FEATURES, 0.5)
    sure[0], unsure[0] = 0.99, 0.1
    assert rule.accepts(rule.score(sure.tolist()))
    assert not rule.accepts(rule.score(unsure.tolist()))
    assert rule.fitted is not None and rule.fitted.upper <= rule.options.eps


def test_without_redis_there_is_a_plan_and_no_rule(tmp_path: Path) -> None:
    assert not opened(tmp_path, "redis://127.0.0.1:9/0").acceptances
