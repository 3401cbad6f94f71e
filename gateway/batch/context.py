"""Opens the context of a plan: the configuration, the routes, and the learnt rules of the semantic caches.

Each replica keeps the rule of its semantic cache in memory. Replicas that share a Redis send each other their verdicts
over it, and a job reads these verdicts too. Without Redis, a job only treats equal prompts as the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from cache.acceptance import Acceptance, AcceptanceOptions
from cache.link import RedisLink
from cache.memory import MemoryStore
from cache.replicate import Replication
from cache.semantic import SemanticCache
from gateway.batch.plan import PlanContext
from gateway.config.types import Config
from gateway.routes import Route, RouteBook
from routers.features import shipped_featurizer

log = logging.getLogger("headgate.batch")

REDIS_TIMEOUT_S = 5.0


def open_context(config: Config, book: RouteBook) -> PlanContext:
    """The context of a plan. Blocks: call it off the event loop."""
    semantic = [route for route in book.routes.values() if route.config.cache == "semantic"]
    if not (semantic and config.storage.redis_url):
        return PlanContext(config, book)
    return PlanContext(config, book, asyncio.run(replicated_rules(str(config.storage.redis_url), semantic)))


async def replicated_rules(redis_url: str, routes: list[Route]) -> Mapping[str, Acceptance]:
    """Each route's acceptance rule, fitted to all verdicts that its replicas have sent each other."""
    link = RedisLink(redis_url, timeout_s=REDIS_TIMEOUT_S)
    try:
        rules = {route.name: await _replicated_rule(link, route) for route in routes}
    finally:
        await link.close()
    learnt = {name: rule for name, rule in rules.items() if rule.fitted is not None}
    log.info("routes with a learnt semantic rule: %s", ", ".join(learnt) or "none")
    return learnt


async def _replicated_rule(link: RedisLink, route: Route) -> Acceptance:
    featurizer = shipped_featurizer()
    options = AcceptanceOptions(eps=route.config.cache_eps)
    cache = SemanticCache(MemoryStore(1), dimension=featurizer.embed("").shape[0], acceptance=Acceptance(options))
    replication = Replication(link, cache, route=route.name, embedder=featurizer.version)
    while await replication.follow():
        pass
    cache.acceptance.refit()
    return cache.acceptance
