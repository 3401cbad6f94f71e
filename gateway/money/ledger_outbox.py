"""Settlements, smaller holds and corrections of rate limits that a worker has yet to send to Redis, in batches.

No request waits for them. A settlement is applied once however often it is sent, and stays queued until Redis has taken
it. Beyond `MAX_QUEUED` the settlements of one account are added up, so that a long outage takes no more memory.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from gateway.config.types import Period
from gateway.money.ledger import Account, Clock, period_end, period_start
from gateway.money.ledger_offline import OfflineLedger
from gateway.money.ledger_scripts import CORRECT, SETTLE, SHRINK
from gateway.money.limits_shared import Arguments
from gateway.redis_wire import RedisWire, Script

SETTLED_S = 3600
"""How long Redis remembers a settlement, so that one that is sent twice counts once."""
BATCH = 64
"""Entries sent at once."""
MAX_QUEUED = 20_000
"""Settlements queued while Redis is away; beyond that, those of one account are added up."""
MAX_CORRECTIONS = 2_000
"""Corrections of rate limits that are queued; further ones are dropped, because buckets refill within a minute."""

Entry = tuple[Script, list[str], Arguments]
"""A script to run, its keys and its arguments."""


class Naming:
    """Writes accounts, holds, times and periods as the scripts' keys and arguments.

    `clock` is set only in tests. Without it Redis' own clock counts, except for the start of a period, which the
    worker's clock decides.
    """

    def __init__(self, prefix: str, worker: str, clock: Clock | None) -> None:
        self.prefix = prefix
        self.clock = clock or time.time
        self._stated = clock
        self._worker = worker
        self._count = 0
        self._starts: dict[Period, tuple[float, float, int]] = {}

    def new_id(self) -> str:
        self._count += 1
        return f"{self._worker}{self._count:x}"

    def keys(self, accounts: Sequence[Account]) -> list[str]:
        return [self.prefix + account.id for account in accounts]

    def now(self) -> str | float:
        """The time to count by; empty where Redis' own clock counts."""
        return "" if self._stated is None else self._stated()

    def start(self, period: Period, now: float) -> int:
        """Unix time at which the current period began; computed once a period."""
        begins_s, ends_s, start = self._starts.get(period, (inf, 0.0, 0))
        if not begins_s <= now < ends_s:
            start = int(period_start(period, now))
            self._starts[period] = (float(start), period_end(period, now), start)
        return start


class Outbox:
    """The queue of one worker. `wake` is set when there is something to send."""

    def __init__(self, wire: RedisWire, naming: Naming, offline: OfflineLedger, settle_down_s: float) -> None:
        self._wire = wire
        self._naming = naming
        self._offline = offline
        self._settle_down_s = settle_down_s
        self.wake = asyncio.Event()
        self.settlements: list[Entry] = []
        """Settlements that Redis has not booked yet, oldest first."""
        self._corrections: list[Entry] = []
        self._shrinks: dict[str, Entry] = {}
        """By hold id, the last shrink that was not sent yet; a settlement makes it needless."""

    def shrink(self, hold_id: str, accounts: Sequence[Account], nanousd: int) -> None:
        """Queue that a hold is this small from now on."""
        naming = self._naming
        self._shrinks[hold_id] = (SHRINK, naming.keys(accounts), [naming.prefix, hold_id, nanousd])
        self.wake.set()

    def settle(self, hold_id: str, accounts: Sequence[Account], nanousd: int) -> None:
        """Queue that a hold has ended and this amount was spent."""
        self._shrinks.pop(hold_id, None)
        now = self._naming.clock()
        starts = [self._naming.start(account.period, now) for account in accounts]
        self.settlements.append(self._settlement(hold_id, self._naming.keys(accounts), nanousd, starts))
        if len(self.settlements) > MAX_QUEUED:
            self.settlements[BATCH:] = self._sums(self.settlements[BATCH:])
        self.wake.set()

    def correct(self, keys: list[str], capacities: Arguments, tokens: int) -> None:
        """Queue tokens to give back to rate limits, below 0 to take more. Sent at most once: a correction that fails is
        dropped.
        """
        if len(self._corrections) < MAX_CORRECTIONS:
            keys = [self._naming.prefix + key for key in keys]
            self._corrections.append((CORRECT, keys, [self._naming.now(), tokens, *capacities]))
        self.wake.set()

    def unsent(self) -> dict[str, int]:
        """Nano-dollars of settlements that Redis has not booked yet, by account id."""
        totals: defaultdict[str, int] = defaultdict(int)
        for _, keys, arguments in self.settlements:
            for key in keys[2:]:
                totals[key.removeprefix(self._naming.prefix)] += int(arguments[3])
        return totals

    def _settlement(self, hold_id: str, keys: list[str], nanousd: int, starts: Sequence[str | float]) -> Entry:
        prefix = self._naming.prefix
        keys = [f"{prefix}settled:{hold_id}", prefix + "leases", *keys]
        return SETTLE, keys, [prefix, hold_id, self._naming.now(), nanousd, SETTLED_S, "", 0.0, *starts]

    def _sums(self, entries: Sequence[Entry]) -> list[Entry]:
        """One settlement per account instead of one per request. The holds themselves lapse with their leases."""
        sums: dict[str, tuple[int, str | int | float]] = {}
        for _, keys, arguments in entries:
            for key, start in zip(keys[2:], arguments[7:], strict=True):
                sums[key] = (sums.get(key, (0, 0))[0] + int(arguments[3]), start)
        return [
            self._settlement(self._naming.new_id(), [key], amount, [start]) for key, (amount, start) in sums.items()
        ]

    async def send(self, epoch: Callable[[], str]) -> bool:
        """Send everything in order. False where Redis has lost its data since this epoch: what it didn't take stays
        queued. Raises what the wire raises.
        """
        unconfirmed = [*self._corrections, *self._shrinks.values()]
        self._corrections, self._shrinks = [], {}
        for start in range(0, len(unconfirmed), BATCH):
            await self._wire.run_all(unconfirmed[start : start + BATCH])
        while self.settlements:
            batch = [self._dated(entry, epoch()) for entry in self.settlements[:BATCH]]
            answers = await self._wire.run_all(batch)
            taken = next((i for i, answer in enumerate(answers) if answer == -1), len(answers))
            self._note_booked(batch[:taken], answers)
            del self.settlements[:taken]
            if taken < len(batch):
                return False
        return True

    def _note_booked(self, entries: Sequence[Entry], answers: Sequence[Any]) -> None:
        for (_, keys, arguments), answer in zip(entries, answers, strict=False):
            if answer == 1:
                for key in keys[2:]:
                    self._offline.note_booked(key.removeprefix(self._naming.prefix), int(arguments[3]))

    def _dated(self, entry: Entry, epoch: str) -> Entry:
        """The settlement with the epoch of the Redis that it is meant for."""
        script, keys, arguments = entry
        return script, keys, [*arguments[:5], epoch, self._settle_down_s, *arguments[7:]]
