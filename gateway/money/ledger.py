"""Budgets: the most that a request can cost is held before it starts, and what it did cost is settled at its end.

`Ledger` is the contract; `MemoryLedger` keeps it within one process, `ledger_redis.RedisLedger` across many. Holding
may wait and may be refused. Shrinking and settling do neither, so they are safe in a `finally` and after the client has
disconnected. The held amount of an account is always the sum of its open holds, so it is zero when no request is in
flight.
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

from gateway.config.types import Period
from gateway.errors import BudgetsAway, HeadgateError, OverBudget
from gateway.money.limits import NOTHING_TAKEN, Taken
from gateway.money.prices import dollars, usd

log = logging.getLogger("headgate.ledger")

Clock = Callable[[], float]
"""Unix time in seconds."""
RECALL_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Account:
    """Something with a budget: `key:<id>`, `route:<name>` or `tenant:<name>`."""

    id: str
    limit_nanousd: int | None
    """None for an account without a budget, whose spending is only counted."""
    period: Period = "month"


Recall = Callable[[], tuple[Mapping[str, int], Iterable[Account]]]
"""Reads from the journal what each account has spent in its current period. Returns the nano-dollars by account id, and
the accounts. Blocks; raises HeadgateError or OSError.
"""


class Hold(Protocol):
    """Money set aside for one request."""

    @property
    def nanousd(self) -> int:
        """The amount that is still set aside; 0 once settled."""
        ...

    def shrink(self, to: int) -> None:
        """Give back all but `to`. Raises ValueError where that is more than is held."""
        ...

    def settle(self, nanousd: int) -> bool:
        """Spend this amount, which may be more than was held, and give the rest back. False, and nothing changes, where
        the hold was settled before.
        """
        ...


class Joined:
    """Two holds of one request as one `Hold`."""

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


class Ledger(Protocol):
    """Keeps accounts and their holds."""

    recall: Recall | None
    """Reads past spending from the journal, where the ledger needs it; None where it can't or need not be read."""

    @property
    def outstanding(self) -> int:
        """Number of open holds of this process."""
        ...

    @property
    def overrun_nanousd(self) -> int:
        """The amount spent beyond what was held, over all requests: above 0, a worst case was underestimated."""
        ...

    async def hold(self, accounts: Sequence[Account], nanousd: int, taken: Taken = NOTHING_TAKEN) -> Hold:
        """Set the amount aside in all accounts. Raises OverBudget, and holds nothing, where one has too little left.

        `taken` is what the request takes from rate limits. Limits that are shared through Redis are taken in the same
        step, which may raise RateLimited.
        """
        ...

    def restore(self, spent: Mapping[str, int], accounts: Iterable[Account] = ()) -> None:
        """Take over what each account has spent in its current period by the journal, in nano-dollars by account id."""
        ...

    async def run(self) -> None:
        """Do the ledger's background work until cancelled."""
        ...

    async def close(self) -> None:
        """Send what is still queued, and disconnect."""
        ...


def period_start(period: Period, now: float) -> float:
    """Unix time at which the current period began. Days, weeks (from Monday) and months are those of UTC."""
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
    """The refusal of a request. It has a `retry_after_s` where only other requests' holds are in the way."""
    limit = account.limit_nanousd or 0
    kind, _, name = account.id.partition(":")
    span = "" if account.period == "total" else f" for this {account.period}"
    return OverBudget(
        f"The budget of {kind} '{name}'{span} is {dollars(usd(limit))}: {dollars(usd(spent))} is spent, "
        f"{dollars(usd(held))} is held by requests in flight, and this request may cost {dollars(usd(nanousd))}.",
        retry_after_s=1.0 if spent + nanousd <= limit else None,
    )


class _Row:
    """One account's current period. Where the clock is set back after a period has begun, the period goes on until its
    end: over both days no more is spent than their two budgets.
    """

    __slots__ = ("ends_s", "held", "spent")

    def __init__(self, ends_s: float) -> None:
        self.ends_s = ends_s
        self.held = 0
        self.spent = 0


class MemoryHold:
    """A hold in a `MemoryLedger`."""

    __slots__ = ("_ledger", "_open", "_rows", "nanousd")

    def __init__(self, ledger: MemoryLedger, rows: Sequence[tuple[Account, _Row]], nanousd: int) -> None:
        self._ledger = ledger
        self._rows = rows
        self._open = True
        self.nanousd = nanousd

    def shrink(self, to: int) -> None:
        if not 0 <= to <= self.nanousd:
            raise ValueError(f"can't shrink a hold of {self.nanousd} nano-dollars to {to}")
        for _, row in self._rows:
            row.held += to - self.nanousd
        self.nanousd = to

    def settle(self, nanousd: int) -> bool:
        if nanousd < 0:
            raise ValueError(f"can't spend {nanousd} nano-dollars")
        if not self._open:
            return False
        self._open = False
        self._ledger.book(self._rows, self.nanousd, nanousd)
        self.nanousd = 0
        return True


class MemoryLedger:
    """The ledger of a single process; its holds never wait."""

    def __init__(self, clock: Clock = time.time) -> None:
        self.recall: Recall | None = None
        """While it is set, past spending is not known yet, so holds of accounts with a budget are refused."""
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
        """Read past spending from the journal, again every second until it could be read."""
        while self.recall is not None:
            await asyncio.sleep(RECALL_EVERY_S)
            try:
                spent, accounts = await asyncio.to_thread(self.recall)
            except (HeadgateError, OSError):
                continue
            self.restore(spent, accounts)
            log.info("budgets go on where they were")

    async def close(self) -> None:
        """Does nothing: no hold or settlement is ever queued."""

    def hold_now(self, accounts: Sequence[Account], nanousd: int) -> MemoryHold:
        """`hold` without waiting."""
        if nanousd < 0:
            raise ValueError(f"can't hold {nanousd} nano-dollars")
        now = self._clock()
        rows: list[tuple[Account, _Row]] = []
        for account in accounts:
            row, limit = self._row(account, now), account.limit_nanousd
            if limit is not None:
                if self.recall is not None:
                    raise BudgetsAway("what was spent before isn't known just now", retry_after_s=RECALL_EVERY_S)
                if row.spent + row.held + nanousd > limit:
                    raise over_budget(account, nanousd, row.spent, row.held)
            rows.append((account, row))
        for _, row in rows:
            row.held += nanousd
        self.outstanding += 1
        return MemoryHold(self, rows, nanousd)

    def book(self, rows: Sequence[tuple[Account, _Row]], held: int, spent: int) -> None:
        """End a hold: book what was spent in the current period."""
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
        """Nano-dollars spent in the current period, and held."""
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
    """Begin a new period: nothing is spent in it yet, and what is held stays held."""
    row.spent = 0
    row.ends_s = period_end(account.period, now)
