"""Work of one control process for all replicas: one of them leads, and reconciles Redis's budgets with the journal."""

from __future__ import annotations

import logging
import secrets
import time
from math import inf

from gateway.config.types import Config
from gateway.journal.store import Store
from gateway.money.budgets import leaders, reconcile
from gateway.replicas.leader import Leadership

log = logging.getLogger("headgate.cluster")

RECONCILE_EVERY_S = 5.0
BESIDE_S = 30.0
"""Seconds after which two leaders must have two databases: the entry of a former leader has expired by then."""


class Cluster:
    """One replica's part in the cluster. Not thread-safe."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config = config
        self._store = store
        self._leadership = Leadership(store.engine, config.server.run_dir)
        self._reconcile_at = 0.0
        self._evicts = ""
        self._name = secrets.token_hex(8)
        self._alone_at = time.monotonic()
        """Monotonic time at which this was last the only leader that uses our Redis; infinite once the warning about
        another one was logged.
        """
        self.leads = False
        """True if this control process led at the last step."""

    def step(self) -> None:
        """Try to lead; a leader reconciles budgets when that is due. Raises SQLAlchemyError."""
        self.leads = self._leadership.is_mine()
        if self.leads and self._config.storage.redis_url and time.monotonic() >= self._reconcile_at:
            self._reconcile_at = time.monotonic() + RECONCILE_EVERY_S
            self._reconcile_budgets()
        elif not self.leads:
            self._alone_at = time.monotonic()

    def close(self) -> None:
        """Give up leading."""
        self._leadership.give_up()

    def _reconcile_budgets(self) -> None:
        from redis.exceptions import RedisError

        try:
            result = reconcile(self._config, self._store, time.time())
            leading = leaders(self._config, self._name)
        except (RedisError, OSError) as fault:
            log.warning("budgets can't be compared with the journal: %s", type(fault).__name__)
            return
        if result.wrong:
            log.warning("redis knew less spending than the journal of %d budget(s); corrected", result.wrong)
        if result.evicts and result.evicts != self._evicts:
            log.warning(
                "redis throws budgets away when its memory is full (maxmemory-policy %s), which overspends them: "
                "set noeviction or a volatile policy", result.evicts,
            )  # fmt: skip
        self._evicts = result.evicts
        self._warn_of_others(leading)

    def _warn_of_others(self, leading: int) -> None:
        """Warn once if several leaders share Redis: as one leads per database, they are separate gateways."""
        now = time.monotonic()
        if leading <= 1:
            self._alone_at = now
        elif now - self._alone_at > BESIDE_S:
            self._alone_at = inf
            log.warning(
                "%d gateways, each with a database of its own, use one redis: their budgets of the same name, limits, "
                "cached answers and what they learn are mixed. Give each a server, or a number (redis://HOST/1)",
                leading,
            )
