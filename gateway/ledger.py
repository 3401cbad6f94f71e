"""Budgets: the worst case of a request is held before it starts, what it really cost is settled at its end.

`Ledger` is the contract; `MemoryLedger` keeps it within one process, `ledger_redis.RedisLedger` across many.
Holding may wait and may say no. Shrinking and settling do neither, so they are safe in a `finally` and when
the client has left. At rest, held is zero in every account; between, it is the sum of the open holds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Protocol

from gateway.config import Period
from gateway.errors import BudgetsAway, HeadgateError, OverBudget
from gateway.limits import NOTHING_TAKEN, Taken
from gateway.prices import dollars, usd

log = logging.getLogger("headgate.ledger")

Clock = Callable[[], float]
"""Unix time in seconds."""
RECALL_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Account:
    """Something with a budget: `key:<id>`, `route:<name>` or `tenant:<name>`."""

    id: str
    limit_nanousd: int | None
    """None: counted, never refused."""
    period: Period = "month"


Recall = Callable[[], tuple[Mapping[str, int], Iterable[Account]]]
"""What each account has spent in its running period, and the accounts. Blocks; raises HeadgateError or OSError."""


class Hold(Protocol):
    """Money set aside for one request."""

    @property
    def nanousd(self) -> int:
        """What is still set aside; 0 once settled."""
        ...

    def shrink(self, to: int) -> None:
        """Give back all but `to`. Raises ValueError where that is more than is held."""
        ...

    def settle(self, nanousd: int) -> bool:
        """Spend this much and give the rest back. More than was held is recorded, never lost.

        False, and nothing changes, where it was settled before.
        """
        ...

    def release(self) -> bool:
        """Settle at nothing."""
        ...


class Joined:
    """Two holds of one request as one: see `Hold`."""

    def __init__(self, first: Hold, then: Hold) -> None:
        self._first = first
        self._then = then

    @property
    def nanousd(self) -> int:
        return self._first.nanousd + self._then.nanousd

    def shrink(self, to: int) -> None:
        kept = min(to, self._first.nanousd)
        self._first.shrink(kept)
        self._then.shrink(to - kept)

    def settle(self, nanousd: int) -> bool:
        part = min(nanousd, self._first.nanousd)
        return self._first.settle(part) and self._then.settle(nanousd - part)

    def release(self) -> bool:
        return self.settle(0)


class Ledger(Protocol):
    """Where accounts are kept."""

    recall: Recall | None
    """Asks the journal what was spent before, where the ledger needs to know; None: it has nobody to ask."""

    @property
    def outstanding(self) -> int:
        """Open holds of this process."""
        ...

    @property
    def overrun_nanousd(self) -> int:
        """Spent beyond what was held, all requests together: a worst case was wrong."""
        ...

    async def hold(self, accounts: Sequence[Account], nanousd: int, taken: Taken = NOTHING_TAKEN) -> Hold:
        """Set the amount aside in all accounts, or in none and raise OverBudget.

        `taken`: from rate limits; where they are shared they are taken here, which may raise RateLimited.
        """
        ...

    def restore(self, spent: Mapping[str, int], accounts: Iterable[Account] = ()) -> None:
        """Take over what each account has spent in its running period, as the journal remembers it."""
        ...

    async def run(self) -> None:
        """What must go on beside the requests, until cancelled."""
        ...

    async def close(self) -> None:
        """Leave nothing unsaid."""
        ...


def period_start(period: Period, now: float) -> float:
    """Unix time at which the running period began; days, weeks (Monday) and months are of UTC."""
    if period == "total":
        return 0.0
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "week":
        day -= timedelta(days=day.weekday())
    elif period == "month":
        day = day.replace(day=1)
    return day.timestamp()


def period_end(period: Period, now: float) -> float:
    """Unix time at which the next period begins."""
    if period == "total":
        return inf
    start = datetime.fromtimestamp(period_start(period, now), UTC)
    days = {"day": 1, "week": 7, "month": 32}[period]
    return period_start(period, (start + timedelta(days=days)).timestamp())


def over_budget(account: Account, nanousd: int, spent: int, held: int) -> OverBudget:
    """The refusal. Where only other requests' holds are in the way, trying again soon may help."""
    limit = account.limit_nanousd or 0
    kind, _, name = account.id.partition(":")
    span = "" if account.period == "total" else f" for this {account.period}"
    return OverBudget(
        f"The budget of {kind} '{name}'{span} is {dollars(usd(limit))}: {dollars(usd(spent))} is spent, "
        f"{dollars(usd(held))} is held by requests in flight, and this request may cost {dollars(usd(nanousd))}.",
        retry_after_s=1.0 if spent + nanousd <= limit else None,
    )


class _Row:
    """One account's running period."""

    __slots__ = ("ends_s", "held", "spent")

    def __init__(self, ends_s: float) -> None:
        self.ends_s = ends_s
        self.held = 0
        self.spent = 0


class MemoryHold:
    """See `Hold`."""

    __slots__ = ("_ledger", "_open", "_rows", "nanousd")

    def __init__(self, ledger: MemoryLedger, rows: Sequence[tuple[Account, _Row]], nanousd: int) -> None:
        self._ledger = ledger
        self._rows = rows
        self._open = True
        self.nanousd = nanousd

    def shrink(self, to: int) -> None:
        if not 0 <= to <= self.nanousd:
            raise ValueError(f"can't shrink a hold of {self.nanousd} to {to}")
        for _, row in self._rows:
            row.held += to - self.nanousd
        self.nanousd = to

    def settle(self, nanousd: int) -> bool:
        if nanousd < 0:
            raise ValueError(f"can't spend {nanousd}")
        if not self._open:
            return False
        self._open = False
        self._ledger.book(self._rows, self.nanousd, nanousd)
        self.nanousd = 0
        return True

    def release(self) -> bool:
        return self.settle(0)


class MemoryLedger:
    """A ledger of one process; its methods never wait."""

    def __init__(self, clock: Clock = time.time) -> None:
        self.recall: Recall | None = None
        """Not None: what was spent before this process is not known yet, so nothing is held of a limited account."""
        self.outstanding = 0
        self.overrun_nanousd = 0
        self._clock = clock
        self._rows: dict[str, _Row] = {}
        self._restored: dict[str, tuple[int, float]] = {}

    async def hold(
        self, accounts: Sequence[Account], nanousd: int, taken: Taken = NOTHING_TAKEN
    ) -> MemoryHold:
        return self.hold_now(accounts, nanousd)

    async def run(self) -> None:
        """Asks what was spent before, until that is known."""
        while self.recall is not None:
            await asyncio.sleep(RECALL_EVERY_S)
            try:
                spent, accounts = await asyncio.to_thread(self.recall)
            except (HeadgateError, OSError):
                continue
            self.restore(spent, accounts)
            log.info("budgets go on where they were")

    async def close(self) -> None:
        """Nothing to leave."""

    def hold_now(self, accounts: Sequence[Account], nanousd: int) -> MemoryHold:
        """`hold` without waiting."""
        if nanousd < 0:
            raise ValueError(f"can't hold {nanousd}")
        now = self._clock()
        rows = [(account, self._row(account, now)) for account in accounts]
        for account, row in rows:
            limit = account.limit_nanousd
            if limit is None:
                continue
            if self.recall is not None:
                raise BudgetsAway("what was spent before isn't known just now", retry_after_s=RECALL_EVERY_S)
            if row.spent + row.held + nanousd > limit:
                raise over_budget(account, nanousd, row.spent, row.held)
        for _, row in rows:
            row.held += nanousd
        self.outstanding += 1
        return MemoryHold(self, rows, nanousd)

    def book(self, rows: Sequence[tuple[Account, _Row]], held: int, spent: int) -> None:
        """The end of a hold: its money is spent in the period that runs now."""
        now = self._clock()
        for account, row in rows:
            if now >= row.ends_s:
                _roll(row, account, now)
            row.held -= held
            row.spent += spent
        self.outstanding -= 1
        if spent > held:
            self.overrun_nanousd += spent - held

    def restore(self, spent: Mapping[str, int], accounts: Iterable[Account] = ()) -> None:
        self.recall = None
        for account_id, amount in spent.items():
            row = self._rows.get(account_id)
            if row is None:
                self._restored[account_id] = (amount, self._clock())
            else:
                row.spent = amount

    def balance(self, account: Account) -> tuple[int, int]:
        """Spent and held, in nano-USD, in the running period."""
        row = self._row(account, self._clock())
        return row.spent, row.held

    def _row(self, account: Account, now: float) -> _Row:
        row = self._rows.get(account.id)
        if row is None:
            row = self._rows[account.id] = _Row(period_end(account.period, now))
            spent, restored_s = self._restored.pop(account.id, (0, now))
            if now < period_end(account.period, restored_s):
                row.spent = spent
        elif now >= row.ends_s:
            _roll(row, account, now)
        return row


def _roll(row: _Row, account: Account, now: float) -> None:
    """A new period: nothing is spent yet, what is held stays held."""
    row.spent = 0
    row.ends_s = period_end(account.period, now)
