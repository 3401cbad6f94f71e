"""Budgets while Redis is away: what one worker knows of each account, and its share of what was left of it.

All workers together spend at most half of what was left when Redis last answered, so they stay within the budget unless
the others have spent more than the other half since this worker last read the account: a second ago for an account with
recent requests, and in turn for the others (`OfflineLedger.due`). A worker that was the only one may spend all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf

from gateway.errors import OverBudget
from gateway.money.ledger import Account, Clock, over_budget, period_end

KNOWN_S = 120.0
"""An account is read from Redis at every pulse until this long after its last request."""
QUIET_AT_ONCE = 500
"""Number of other accounts that are read at one pulse."""


class KnownAccount:
    """What this process knows of one account, in nano-dollars."""

    __slots__ = ("account", "ends_s", "held", "offline", "queued", "seen_s", "spent")

    def __init__(self, account: Account, now: float) -> None:
        self.account = account
        self.ends_s = period_end(account.period, now)
        self.spent = self.held = 0
        """Amounts of all workers, as Redis last said."""
        self.queued = 0
        """Amount spent by this worker that Redis has not confirmed yet."""
        self.offline = 0
        """Amount held or spent by this worker since Redis last answered."""
        self.seen_s = now

    def update(self, spent: int, held: int, now: float) -> None:
        self.spent, self.held, self.offline = spent, held, 0
        if now >= self.ends_s:
            self.ends_s = period_end(self.account.period, now)

    def roll(self, now: float) -> None:
        if now >= self.ends_s:
            self.spent = self.queued = self.offline = 0
            self.ends_s = period_end(self.account.period, now)

    def share(self, workers: int) -> int:
        """What this worker may still spend while Redis is away."""
        left = max(0, (self.account.limit_nanousd or 0) - self.spent - self.queued - self.held)
        return (left if workers <= 1 else left // (2 * workers)) - self.offline


class OfflineLedger:
    """The accounts that this worker has seen within the last `KNOWN_S` seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, KnownAccount] = {}
        self._turn = 0
        """Number of quiet accounts that have been read in this round."""

    def __iter__(self) -> Iterator[KnownAccount]:
        return iter(list(self._known.values()))

    @property
    def accounts(self) -> list[Account]:
        return [known.account for known in self._known.values()]

    @property
    def spent(self) -> dict[str, int]:
        """The least that each account has spent in its current period, in nano-dollars by account id."""
        return {id_: known.spent for id_, known in self._known.items()}

    def update(self, account: Account, spent: int, held: int) -> None:
        """Take over what Redis says of an account that a request asks for."""
        now = self._clock()
        self._find_or_add(account, now).update(spent, held, now)

    def refresh(self, account: Account, spent: int, held: int) -> None:
        """Take over what Redis says of an account that is read at a pulse."""
        known = self._known.get(account.id)
        if known is not None:
            known.update(spent, held, self._clock())

    def due(self) -> list[Account]:
        """The accounts to read at this pulse: those with a recent request, and in turn so many of the others that the
        pulse stays short however many there are.
        """
        recent_s = self._clock() - KNOWN_S
        due = [known.account for known in self._known.values() if known.seen_s >= recent_s]
        quiet = [known.account for known in self._known.values() if known.seen_s < recent_s]
        if self._turn >= len(quiet):
            self._turn = 0
        due += quiet[self._turn : self._turn + QUIET_AT_ONCE]
        self._turn += QUIET_AT_ONCE
        return due

    def note_settled(self, accounts: Sequence[Account], held: int, spent: int) -> None:
        """A hold of this worker has ended, and its settlement is queued for Redis."""
        for account in accounts:
            known = self._known.get(account.id)
            if known is not None:
                known.held = max(0, known.held - held)
                known.queued += spent

    def note_booked(self, account_id: str, nanousd: int) -> None:
        """Redis has booked a settlement of this worker."""
        known = self._known.get(account_id)
        if known is not None:
            known.spent += nanousd
            known.queued = max(0, known.queued - nanousd)

    def raise_spent(self, accounts: Iterable[Account], spent: Mapping[str, int]) -> None:
        """Raise each account to what it has spent at least, in nano-dollars by account id."""
        now = self._clock()
        for account in accounts:
            known = self._known.get(account.id)
            if known is None:
                known = self._known[account.id] = KnownAccount(account, now)
                known.seen_s = -inf
            known.account = account
            known.spent = max(known.spent, spent.get(account.id, 0))

    def hold(self, accounts: Sequence[Account], nanousd: int, workers: int) -> None:
        """Hold the amount from this worker's share of each account. Raises OverBudget, and holds nothing, where one is
        too small.
        """
        now = self._clock()
        all_ = [self._find_or_add(account, now) for account in accounts]
        for known in all_:
            known.roll(now)
            if known.account.limit_nanousd is not None and nanousd > known.share(workers):
                raise _over_share(known, nanousd, workers)
        for known in all_:
            known.offline += nanousd

    def give_back(self, accounts: Sequence[Account], nanousd: int) -> None:
        """Return what a hold from this worker's share did not spend; below 0 where it spent more than it held."""
        for account in accounts:
            known = self._known.get(account.id)
            if known is not None:
                known.offline = max(0, known.offline - nanousd)

    def _find_or_add(self, account: Account, now: float) -> KnownAccount:
        known = self._known.get(account.id)
        if known is None:
            known = self._known[account.id] = KnownAccount(account, now)
        known.account, known.seen_s = account, now
        return known


def _over_share(known: KnownAccount, nanousd: int, workers: int) -> OverBudget:
    spent, held = known.spent + known.queued, known.held + known.offline
    refusal = over_budget(known.account, nanousd, spent, held)
    if spent + held + nanousd > (known.account.limit_nanousd or 0):
        return refusal
    message = f"{refusal.message} Redis can't tell its balance now, so each of {workers} workers has a share of it."
    return OverBudget(message, retry_after_s=1.0)
