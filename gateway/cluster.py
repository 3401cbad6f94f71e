"""What the control process does for all replicas together: who leads, and budgets that are as the journal says."""

from __future__ import annotations

import logging
import secrets
import time
from math import inf

from gateway.budgets import leaders, right
from gateway.config import Config
from gateway.journal.store import Store
from gateway.leader import Leadership

log = logging.getLogger("headgate.cluster")

RIGHT_EVERY_S = 5.0
BESIDE_S = 30.0
"""Two leaders for so long have two databases: whoever led before is forgotten by then."""


class Cluster:
    """One replica's part; for one thread."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config = config
        self._store = store
        self._leadership = Leadership(store.engine, config.server.run_dir)
        self._right_at = 0.0
        self._evicts = ""
        self._name = secrets.token_hex(8)
        self._alone_at = time.monotonic()
        """When no other led that uses our Redis; infinite: what follows from one that does has been told."""
        self.leads = False
        """As of the last step."""

    def step(self) -> None:
        """Raises what the database raises."""
        self.leads = self._leadership.is_mine()
        if self.leads and self._config.storage.redis_url and time.monotonic() >= self._right_at:
            self._right_at = time.monotonic() + RIGHT_EVERY_S
            self._right_budgets()
        elif not self.leads:
            self._alone_at = time.monotonic()

    def close(self) -> None:
        """Another may lead."""
        self._leadership.give_up()

    def _right_budgets(self) -> None:
        from redis.exceptions import RedisError

        try:
            found, leading = right(self._config, self._store, time.time()), leaders(self._config, self._name)
        except (RedisError, OSError) as fault:
            log.warning("budgets can't be compared with the journal: %s", type(fault).__name__)
            return
        if found.wrong:
            log.warning("redis knew less than the journal of %d budget(s); righted", found.wrong)
        if found.evicts and found.evicts != self._evicts:
            log.warning(
                "redis throws budgets away when its memory is full (maxmemory-policy %s), which overspends them: "
                "set noeviction or a volatile policy", found.evicts,
            )  # fmt: skip
        self._evicts = found.evicts
        self._look_beside(leading)

    def _look_beside(self, leading: int) -> None:
        """One leads for each database."""
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
