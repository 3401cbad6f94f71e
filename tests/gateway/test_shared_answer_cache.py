"""The cache of several workers: one proposes what another has stored, and none serves what another has deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from cache.entry import Entry
from cache.key import Partition
from cache.memory import MemoryStore
from cache.pair_rule import fit_pair_rule
from cache.semantic import Miss
from gateway import shared_answer_cache
from gateway.answer_cache import Similar, open_cache, open_pair_rules
from gateway.config.types import Config, RouteConfig, Secret, Server, Storage
from gateway.errors import ConfigError
from gateway.shared_answer_cache import SharedAnswerCache
from routers.features import shipped_featurizer
from tests.cache.test_pair_rule import labelled
from tests.gateway.redis_server import RedisServer
from tests.until import until

ROUTE = cast(Any, SimpleNamespace(name="auto", config=RouteConfig(name="auto", models=["m"], cache_eps=0.03)))
QUESTION = Partition(b"p", "how do I block my lost card")
ENTRY = Entry("e1", "chat", b"{}", "m", "d", 100.0, 1e9, 0.01, tenant="t")


@pytest.fixture
async def caches(
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[SharedAnswerCache, SharedAnswerCache]]:
    monkeypatch.setattr(shared_answer_cache, "FOLLOW_EVERY_S", 0.01)
    pair = tuple(SharedAnswerCache(redis_server.url, 5.0, shipped_featurizer) for _ in range(2))
    await pair[0]._link.client.flushall()
    yield cast(tuple[SharedAnswerCache, SharedAnswerCache], pair)
    for cache in pair:
        await cache.close()


async def remember(cache: SharedAnswerCache) -> None:
    vector = shipped_featurizer().embed(QUESTION.text)
    similar = Similar(QUESTION, vector, Miss("empty"))
    exchange = SimpleNamespace(route=ROUTE, cache_key=b"k", similar=similar)
    await cache.remember(cast(Any, exchange), ENTRY)


async def test_what_one_remembers_the_other_proposes_until_it_is_deleted(
    caches: tuple[SharedAnswerCache, SharedAnswerCache],
) -> None:
    """Entries, and deletions of one and of all of a tenant's, reach the other's index; the store is shared."""
    one, two = caches
    mine, theirs = one.semantic_of(ROUTE), two.semantic_of(ROUTE)
    await remember(one)
    await until(lambda: len(theirs) == 1)
    assert await two.store.get(b"k", tenant="t", now_s=101.0) == ENTRY
    assert await two.delete("e1", tenant="other") is False
    assert await two.delete("e1", tenant="t") is True
    assert await one.store.get(b"k", tenant="t", now_s=101.0) is None
    await until(lambda: len(mine) == 0)
    await remember(one)
    await until(lambda: len(theirs) == 1)
    assert await one.delete_tenant("t")
    assert await two.store.get(b"k", tenant="t", now_s=101.0) is None
    await until(lambda: len(theirs) == 0)


async def test_verdicts_are_told(caches: tuple[SharedAnswerCache, SharedAnswerCache]) -> None:
    """A verdict of one replica's judge is learnt by the other."""
    one, two = caches
    theirs = two.semantic_of(ROUTE)
    one.semantic_of(ROUTE)
    before = theirs.false_hit_rate().n
    from cache.neighbours import FEATURES

    tell = one.semantic_of(ROUTE)._on_verdict
    assert tell is not None
    tell([0.5] * FEATURES, True, 2.0, True)
    await until(lambda: theirs.false_hit_rate().n == before + 1)


async def test_workers_of_one_machine_share_a_file(tmp_path: Path) -> None:
    """Without Redis several workers share a store, so that deletions count for all; a single worker uses its memory."""
    many = Config(server=Server(run_dir=str(tmp_path), workers=2))
    one, two = (open_cache(many, shipped_featurizer) for _ in range(2))
    await one.store.put(b"k", ENTRY)
    assert await two.store.get(b"k", tenant="t", now_s=101.0) == ENTRY
    assert await two.delete("e1", tenant="t")
    assert await one.store.get(b"k", tenant="t", now_s=101.0) is None
    await one.close()
    await two.close()
    alone = open_cache(Config(server=Server(run_dir=str(tmp_path))), shipped_featurizer)
    assert isinstance(alone.store, MemoryStore) and alone.flight.lease is None
    shared = open_cache(Config(storage=Storage(redis_url=Secret("redis://127.0.0.1:1/0"))), shipped_featurizer)
    assert isinstance(shared, SharedAnswerCache) and shared.flight.lease is not None
    await shared.close()


async def test_where_redis_has_no_vector_sets_every_replica_keeps_an_index(
    redis_server: RedisServer,
) -> None:
    """The setting is ignored with a warning, and the cache works with an index per replica."""
    cache = SharedAnswerCache(redis_server.url, 5.0, shipped_featurizer, vectors_in_redis=True)
    await cache._probe()
    assert not cache._wants_sets
    await remember(cache)
    vector = shipped_featurizer().embed(QUESTION.text)
    found = await cache.semantic_of(ROUTE).look_up(QUESTION, vector, tenant="t", now_s=101.0)
    assert isinstance(found, Miss) and found.similarity > 0.99
    await cache.close()


def test_a_pair_rule_is_of_the_vectors_that_are_compared(tmp_path: Path) -> None:
    """A route's cache uses its rule; a file that is no rule, or is for another embedder, is refused at the start."""
    pairs = labelled(200)
    rule = fit_pair_rule(pairs, np.full(len(pairs), 0.5), embedder="native-abc")
    rule.save(tmp_path / "rule.npz")

    def config(file: str) -> Config:
        return Config(
            routes=[RouteConfig(name="auto", models=["m"], cache="semantic", cache_rule=str(tmp_path / file))]
        )

    assert open_pair_rules(config("rule.npz"), "encoded native-abc-384").keys() == {"auto"}
    assert not open_pair_rules(Config(), "the shipped table")
    with pytest.raises(ConfigError, match=r"routes\[0\].cache_rule: .*'native-abc', the cache compares by"):
        open_cache(config("rule.npz"), shipped_featurizer)
    with pytest.raises(ConfigError, match=r"routes\[0\].cache_rule: .*No such file"):
        open_cache(config("none.npz"), shipped_featurizer)
    (tmp_path / "text.npz").write_text("not a rule")
    with pytest.raises(ConfigError, match=r"routes\[0\].cache_rule: .*is no pair rule"):
        open_cache(config("text.npz"), shipped_featurizer)
