"""What a worker has yet to tell Redis of money and limits: settlements, smaller holds, corrections, sent in batches.

Nobody waits for it. A settlement is applied once however often it is sent, and stays here until Redis has taken it;
beyond a bound those of one account become one sum, so that a long outage costs no memory.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from gateway.config import Period
from gateway.ledger import Account, Clock, period_end, period_start
from gateway.ledger_offline import OfflineLedger
from gateway.ledger_scripts import CORRECT, SETTLE, SHRINK
from gateway.limits_shared import Words
from gateway.redis_wire import RedisWire, Script

SETTLED_S = 3600
"""How long Redis remembers a settlement, so that one sent twice counts once."""
BATCH = 64
"""Settlements sent at once."""
MAX_QUEUED = 20_000
"""Settlements kept while Redis is away; beyond, those of one account become one sum."""
MAX_CORRECTIONS = 2_000
"""A correction of a rate limit that can't be sent is forgotten: the bucket refills within a minute."""

Entry = tuple[Script, list[str], Words]
"""A script to run, its keys and its arguments."""


class Naming:
    """How Redis' keys, the time and the periods of accounts are written in what scripts are told.

    `clock`: None outside tests, then Redis' own clock decides, but for where a period begins.
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
        """Empty: Redis knows best."""
        return "" if self._stated is None else self._stated()

    def start(self, period: Period, now: float) -> int:
        """When the running period began; worked out once a period."""
        begins_s, ends_s, start = self._starts.get(period, (inf, 0.0, 0))
        if not begins_s <= now < ends_s:
            start = int(period_start(period, now))
            self._starts[period] = (float(start), period_end(period, now), start)
        return start


class Outbox:
    """One per worker. `wake` is set when there is something to send."""

    def __init__(self, wire: RedisWire, naming: Naming, alone: OfflineLedger, settle_down_s: float) -> None:
        self._wire = wire
        self._naming = naming
        self._alone = alone
        self._settle_down_s = settle_down_s
        self.wake = asyncio.Event()
        self.settlements: list[Entry] = []
        """That Redis doesn't have yet, in their order."""
        self._corrections: list[Entry] = []
        self._shrinks: dict[str, Entry] = {}
        """By hold: one that is settled before it was sent need not be sent."""

    def shrink(self, hold_id: str, accounts: Sequence[Account], nanousd: int) -> None:
        """A hold is this small from now on."""
        naming = self._naming
        self._shrinks[hold_id] = (SHRINK, naming.keys(accounts), [naming.prefix, hold_id, nanousd])
        self.wake.set()

    def settle(self, hold_id: str, accounts: Sequence[Account], nanousd: int) -> None:
        """A hold is over, and so much was spent."""
        self._shrinks.pop(hold_id, None)
        now = self._naming.clock()
        starts = [self._naming.start(account.period, now) for account in accounts]
        self.settlements.append(self._settlement(hold_id, self._naming.keys(accounts), nanousd, starts))
        if len(self.settlements) > MAX_QUEUED:
            self.settlements[BATCH:] = self._sums(self.settlements[BATCH:])
        self.wake.set()

    def correct(self, keys: list[str], capacities: Words, tokens: int) -> None:
        """Rate limits: what was guessed wrong. Not sent twice, and forgotten where it can't be sent."""
        if len(self._corrections) < MAX_CORRECTIONS:
            keys = [self._naming.prefix + key for key in keys]
            self._corrections.append((CORRECT, keys, [self._naming.now(), tokens, *capacities]))
        self.wake.set()

    def unsent(self) -> dict[str, int]:
        """Nano-dollars of settlements that Redis doesn't have yet, by account."""
        found: defaultdict[str, int] = defaultdict(int)
        for _, keys, words in self.settlements:
            for key in keys[2:]:
                found[key.removeprefix(self._naming.prefix)] += int(words[3])
        return found

    def _settlement(self, hold_id: str, keys: list[str], nanousd: int, starts: Sequence[str | float]) -> Entry:
        prefix = self._naming.prefix
        keys = [f"{prefix}settled:{hold_id}", prefix + "leases", *keys]
        return SETTLE, keys, [prefix, hold_id, self._naming.now(), nanousd, SETTLED_S, "", 0.0, *starts]

    def _sums(self, entries: Sequence[Entry]) -> list[Entry]:
        """One settlement an account instead of one a request; the holds themselves lapse."""
        sums: dict[str, tuple[int, str | int | float]] = {}
        for _, keys, arguments in entries:
            for key, start in zip(keys[2:], arguments[7:], strict=True):
                sums[key] = (sums.get(key, (0, 0))[0] + int(arguments[3]), start)
        return [
            self._settlement(self._naming.new_id(), [key], amount, [start]) for key, (amount, start) in sums.items()
        ]

    async def send(self, epoch: Callable[[], str]) -> bool:
        """All of it, in order. False: Redis isn't the one of this epoch, and what it didn't take stays here.

        Raises what the wire raises.
        """
        told = [*self._corrections, *self._shrinks.values()]
        self._corrections, self._shrinks = [], {}
        for start in range(0, len(told), BATCH):
            await self._wire.run_all(told[start : start + BATCH])
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
                    self._alone.booked(key.removeprefix(self._naming.prefix), int(arguments[3]))

    def _dated(self, entry: Entry, epoch: str) -> Entry:
        """A settlement says which Redis it was made for."""
        script, keys, arguments = entry
        return script, keys, [*arguments[:5], epoch, self._settle_down_s, *arguments[7:]]
