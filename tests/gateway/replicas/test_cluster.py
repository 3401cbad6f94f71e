"""The control process's work for all replicas, with a real Redis."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from redis import Redis

from gateway.config.types import Auth, Config, KeyConfig, Secret, Server, Storage
from gateway.journal.schema import migrate
from gateway.journal.store import open_store
from gateway.replicas import cluster
from tests.gateway.redis_server import RedisServer


def test_a_redis_that_evicts_budgets_is_logged(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, if there are budgets and Redis evicts keys without a time to live, and again when that starts
    anew.
    """
    monkeypatch.setattr(cluster, "RECONCILE_EVERY_S", 0.0)
    url = f"sqlite:///{tmp_path}/journal.db"
    migrate(url)
    config = Config(
        server=Server(run_dir=str(tmp_path)), storage=Storage(url=Secret(url), redis_url=Secret(redis_server.url)),
        auth=Auth(keys=[KeyConfig(name="a", key=Secret("sk-a"), budget_usd=1.0)]),
    )  # fmt: skip

    def said(policy: str, maxmemory: str, config: Config) -> int:
        redis.config_set("maxmemory-policy", policy)
        redis.config_set("maxmemory", maxmemory)
        caplog.clear()
        for _ in range(2):
            one._config = config
            one.step()
        assert one.leads
        return caplog.text.count("throws budgets away")

    store = open_store(url)
    one = cluster.Cluster(config, store)
    caplog.set_level(logging.WARNING)
    without = Config(server=config.server, storage=config.storage)
    with Redis.from_url(redis_server.url) as redis:
        try:
            assert said("noeviction", "100mb", config) == said("volatile-lru", "100mb", config) == 0
            assert said("allkeys-lru", "0", config) == said("allkeys-lru", "100mb", without) == 0
            assert said("allkeys-lru", "100mb", config) == 1
            assert said("noeviction", "100mb", config) == 0
            assert said("allkeys-lfu", "100mb", config) == 1
        finally:
            redis.config_set("maxmemory-policy", "noeviction")
            redis.config_set("maxmemory", "0")
            one.close()
            store.close()


def test_two_gateways_on_one_redis_are_logged(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Gateways with databases of their own that share a Redis are logged once. Replicas of one gateway are not."""
    monkeypatch.setattr(cluster, "RECONCILE_EVERY_S", 0.0)
    monkeypatch.setattr(cluster, "BESIDE_S", 0.0)
    caplog.set_level(logging.WARNING)
    members = []
    for name, database in (("a", "one"), ("b", "one"), ("c", "two")):
        url = f"sqlite:///{tmp_path}/{database}.db"
        migrate(url)
        (tmp_path / name).mkdir()
        folder = str(tmp_path / ("a" if database == "one" else name))
        config = Config(
            server=Server(run_dir=folder), storage=Storage(url=Secret(url), redis_url=Secret(redis_server.url))
        )
        members.append((cluster.Cluster(config, store := open_store(url)), store))
    with Redis.from_url(redis_server.url) as redis:
        redis.flushall()

        def told(*of: int) -> int:
            caplog.clear()
            for _ in range(3):
                for number in of:
                    members[number][0].step()
            return caplog.text.count("use one redis")

        try:
            assert told(0, 1) == 0 and [member.leads for member, _ in members] == [True, False, False]
            assert told(0, 2) == 2  # once by each
            assert told(0, 1, 2) == 0
            redis.flushall()
            assert told(0, 1) == 0
        finally:
            for member, store in members:
                member.close()
                store.close()
            redis.flushall()
