"""Budgets while Redis is away: what one worker knows of each account, and its share of what was left.

All workers together give away at most half of what was left when Redis last answered, so they stay within the
budget unless the others spent more than the other half since this worker last looked: a second ago at an account that
it was asked for lately, and in turn at the others (`OfflineLedger.due`). A worker that was the only one has all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf

from gateway.errors import OverBudget
from gateway.ledger import Account, Clock, over_budget, period_end

KNOWN_S = 120.0
"""How long after its last request an account is looked after at every pulse."""
QUIET_AT_ONCE = 500
"""Other accounts that are looked after at one pulse."""


class Known:
    """What this process knows of one account."""

    __slots__ = ("account", "alone", "ends_s", "held", "queued", "seen_s", "spent")

    def __init__(self, account: Account, now: float) -> None:
        self.account = account
        self.ends_s = period_end(account.period, now)
        self.spent = self.held = 0
        """Of all workers, as last told."""
        self.queued = 0
        """Spent here, and Redis hasn't said that it knows."""
        self.alone = 0
        """Held or spent here since."""
        self.seen_s = now

    def told(self, spent: int, held: int, now: float) -> None:
        self.spent, self.held, self.alone = spent, held, 0
        if now >= self.ends_s:
            self.ends_s = period_end(self.account.period, now)

    def roll(self, now: float) -> None:
        if now >= self.ends_s:
            self.spent = self.queued = self.alone = 0
            self.ends_s = period_end(self.account.period, now)

    def share(self, workers: int) -> int:
        """Of what was left, what this worker may still give away."""
        left = max(0, (self.account.limit_nanousd or 0) - self.spent - self.queued - self.held)
        return (left if workers <= 1 else left // (2 * workers)) - self.alone


class OfflineLedger:
    """The accounts this worker has seen of late."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, Known] = {}
        self._turn = 0
        """How many quiet accounts have been looked after in this round."""

    def __iter__(self) -> Iterator[Known]:
        return iter(list(self._known.values()))

    @property
    def accounts(self) -> list[Account]:
        return [known.account for known in self._known.values()]

    @property
    def spent(self) -> dict[str, int]:
        """What each account has spent at least."""
        return {id_: known.spent for id_, known in self._known.items()}

    def told(self, account: Account, spent: int, held: int) -> None:
        """What Redis says of an account that a request asks for."""
        now = self._clock()
        self._know(account, now).told(spent, held, now)

    def refresh(self, account: Account, spent: int, held: int) -> None:
        """What Redis says of an account that is looked after."""
        known = self._known.get(account.id)
        if known is not None:
            known.told(spent, held, self._clock())

    def due(self) -> list[Account]:
        """The accounts to look after now: those that a request asked for lately, and so many others in turn that one
        pulse stays short however many there are.
        """
        recent_s = self._clock() - KNOWN_S
        found = [known.account for known in self._known.values() if known.seen_s >= recent_s]
        quiet = [known.account for known in self._known.values() if known.seen_s < recent_s]
        if self._turn >= len(quiet):
            self._turn = 0
        found += quiet[self._turn : self._turn + QUIET_AT_ONCE]
        self._turn += QUIET_AT_ONCE
        return found

    def settled(self, accounts: Sequence[Account], held: int, spent: int) -> None:
        """A hold of ours is over; Redis is being told."""
        for account in accounts:
            known = self._known.get(account.id)
            if known is not None:
                known.held = max(0, known.held - held)
                known.queued += spent

    def booked(self, account_id: str, nanousd: int) -> None:
        """Redis has taken a settlement of ours."""
        known = self._known.get(account_id)
        if known is not None:
            known.spent += nanousd
            known.queued = max(0, known.queued - nanousd)

    def floor(self, accounts: Iterable[Account], spent: Mapping[str, int]) -> None:
        """What the journal says."""
        now = self._clock()
        for account in accounts:
            known = self._known.get(account.id)
            if known is None:
                known = self._known[account.id] = Known(account, now)
                known.seen_s = -inf
            known.account = account
            known.spent = max(known.spent, spent.get(account.id, 0))

    def hold(self, accounts: Sequence[Account], nanousd: int, workers: int) -> None:
        """From this worker's shares, or raise OverBudget."""
        now = self._clock()
        all_ = [self._know(account, now) for account in accounts]
        for known in all_:
            known.roll(now)
            if known.account.limit_nanousd is not None and nanousd > known.share(workers):
                raise _over_share(known, nanousd, workers)
        for known in all_:
            known.alone += nanousd

    def give_back(self, accounts: Sequence[Account], nanousd: int) -> None:
        """Of a hold from a share; less than nothing where more was spent than held."""
        for account in accounts:
            known = self._known.get(account.id)
            if known is not None:
                known.alone = max(0, known.alone - nanousd)

    def _know(self, account: Account, now: float) -> Known:
        known = self._known.get(account.id)
        if known is None:
            known = self._known[account.id] = Known(account, now)
        known.account, known.seen_s = account, now
        return known


def _over_share(known: Known, nanousd: int, workers: int) -> OverBudget:
    spent, held = known.spent + known.queued, known.held + known.alone
    refusal = over_budget(known.account, nanousd, spent, held)
    if spent + held + nanousd > (known.account.limit_nanousd or 0):
        return refusal
    return OverBudget(f"{refusal.message} Just now each of {workers} workers has a share of it.", retry_after_s=1.0)
