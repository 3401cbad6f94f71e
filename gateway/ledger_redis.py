"""Budgets and rate limits shared by workers and replicas through Redis; the contract of `ledger.Ledger`.

Holding is one script in one round trip, atomic over all accounts and limits. Settling never waits: it joins a
queue that `run` sends, and each entry is applied once however often it is sent. A hold is a lease: when its
worker dies, the next hold after the lease's end gives the money back, so a crash never eats a budget.

Redis may lose its data: whoever notices reads the journal and says what was spent before anything is held or booked
again; where the journal can't be read either, Redis counts as away. Redis may be
away: then callers with a budget are refused (`refuse`) or go on by shares (`share`, see `ledger_alone`). What is
spent meanwhile is sent when Redis is back, a second before anybody holds by Redis again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, cast

from redis.exceptions import RedisError

from gateway.errors import BudgetsAway, HeadgateError, PolicyError
from gateway.ledger import Account, Clock, MemoryHold, MemoryLedger, Recall, over_budget, period_start
from gateway.ledger_offline import OfflineLedger
from gateway.ledger_outbox import Naming, Outbox
from gateway.ledger_scripts import HOLD, PULSE, RAISE, REHOLD
from gateway.limits import NOTHING_TAKEN, Taken
from gateway.limits_shared import SharedTaken, Words
from gateway.redis_wire import RedisAway, RedisRefused, RedisWire

log = logging.getLogger("headgate.ledger")

PREFIX = "{headgate}:ledger:"
RIGHTED = "righted"
"""Of `born`: since Redis was empty the journal has told it what was spent."""
LEASE_S = 120.0
"""A living worker renews its leases in time; a dead one's holds lapse after this long."""
SETTLE_DOWN_S = 1.5
"""After Redis lost its data: so long every worker has to say what it knew, before anything is held."""
RETRY_S = 0.25
PULSE_S = 1.0
LOOKED_AT_ONCE = 100
"""Accounts that Redis is asked of in one write."""
SILENT_S = 5.0
"""A worker that hasn't been heard of for this long doesn't count when shares are made."""
GRACE_S = 1.0
"""After Redis is back: so long every worker has to send what it spent alone, before shares end."""
RECALL_S = 2.0
"""Longest wait for the journal's word on what was spent."""
TRIES = 2
"""Of a hold, before Redis counts as away: one late answer is no outage."""

WhenAway = Literal["share", "refuse"]


class RedisHold:
    """See `ledger.Hold`. `local` is its count in this process, which says whether it is settled."""

    __slots__ = ("_ledger", "accounts", "alone", "id", "local")

    def __init__(self, ledger: RedisLedger, local: MemoryHold, accounts: Sequence[Account], *, alone: bool) -> None:
        self._ledger = ledger
        self.local = local
        self.accounts = accounts
        self.id = ledger.new_id()
        self.alone = alone
        """Redis doesn't know it."""

    @property
    def nanousd(self) -> int:
        return self.local.nanousd

    def shrink(self, to: int) -> None:
        before = self.local.nanousd
        if to != before:
            self.local.shrink(to)
            self._ledger.shrunk(self, before - to)

    def settle(self, nanousd: int) -> bool:
        held = self.local.nanousd
        settled = self.local.settle(nanousd)
        if settled:
            self._ledger.settled(self, held, nanousd)
        return settled

    def release(self) -> bool:
        return self.settle(0)


class Spoilt(Exception):
    """Something else than this account stands at its key."""

    def __init__(self, account: Account) -> None:
        self.account = account


class RedisLedger:
    """One per worker. `run` must be running; `close` sends what is left.

    `clock`: None outside tests, then Redis' own clock decides, but for where a period begins.
    """

    def __init__(
        self,
        wire: RedisWire,
        *,
        clock: Clock | None = None,
        prefix: str = PREFIX,
        lease_s: float = LEASE_S,
        when_away: WhenAway = "share",
        settle_down_s: float = SETTLE_DOWN_S,
    ) -> None:
        self._worker = secrets.token_hex(6)
        self._wire = wire
        self._naming = Naming(prefix, self._worker, clock)
        self._clock = self._naming.clock
        self._prefix = prefix
        self._lease_s = lease_s
        self._when_away = when_away
        self._settle_down_s = settle_down_s
        self._local = MemoryLedger(self._clock)
        self._alone = OfflineLedger(self._clock)
        self._outbox = Outbox(wire, self._naming, self._alone, settle_down_s)
        self._holds: dict[str, RedisHold] = {}
        self._sending = asyncio.Lock()
        self._meeting = asyncio.Lock()
        self._epoch = ""
        self._recalled = False
        self.recall: Recall | None = None
        self.workers = 1
        """Of all replicas, as of the last pulse."""
        self.is_away = False
        """Redis didn't answer last time."""
        self.spoilt: dict[str, Account] = {}
        """At whose keys something else stands: to these Redis is as if away, to no other."""

    @property
    def outstanding(self) -> int:
        return self._local.outstanding

    @property
    def overrun_nanousd(self) -> int:
        return self._local.overrun_nanousd

    @property
    def queued(self) -> int:
        """Settlements that Redis doesn't have yet."""
        return len(self._outbox.settlements)

    # Holding

    async def hold(self, accounts: Sequence[Account], nanousd: int, taken: Taken = NOTHING_TAKEN) -> RedisHold:
        """Money and rate limits at once, or nothing. Raises OverBudget, RateLimited, or PolicyError (503)."""
        if nanousd < 0:
            raise ValueError(f"can't hold {nanousd}")
        wanted = taken if isinstance(taken, SharedTaken) else None
        if not accounts and wanted is None:
            return RedisHold(self, self._local.hold_now((), nanousd), (), alone=True)
        for _ in range(0 if self.is_away else TRIES):
            hold = RedisHold(self, self._local.hold_now((), nanousd), accounts, alone=False)
            try:
                self._read(await self._ask(hold, nanousd, wanted), hold, nanousd, wanted)
            except RedisError as fault:
                hold.release()  # it may have been made all the same
                failed = fault
            except PolicyError:
                hold.local.release()
                raise
            except Spoilt as fault:
                hold.local.release()
                self._note_spoilt(fault.account)
                return self._hold_alone(accounts, nanousd, wanted)
            except BaseException:
                hold.release()
                raise
            else:
                self._holds[hold.id] = hold
                return hold
        if not self.is_away:
            self._note_away(failed)
        return self._hold_alone(accounts, nanousd, wanted)

    async def _ask(self, hold: RedisHold, nanousd: int, wanted: SharedTaken | None) -> list[Any]:
        """Redis' answer, of a Redis that knows what we knew."""
        while True:
            answer = cast(list[Any], await self._wire.run(HOLD, *self._words(hold, nanousd, wanted)))
            if not answer[1]:
                return answer
            await self._meet(answer[0].decode())
            await asyncio.sleep(float(answer[1]))

    def _words(self, hold: RedisHold, nanousd: int, wanted: SharedTaken | None) -> tuple[list[str], Words]:
        now = self._clock()
        keys = [self._prefix + "leases", *self._naming.keys(hold.accounts)]
        arguments: Words = [self._prefix, hold.id, self._naming.now(), self._lease_s, nanousd, secrets.token_hex(8),
                            self._settle_down_s, wanted.tokens if wanted else 0, self._epoch,
                            len(hold.accounts)]  # fmt: skip
        for account in hold.accounts:
            limit = account.limit_nanousd
            arguments += ["" if limit is None else limit, self._naming.start(account.period, now)]
        if wanted is not None:
            keys += [self._prefix + key for key in wanted.names()]
            arguments += wanted.capacities()
        return keys, arguments

    def _read(self, answer: Sequence[Any], hold: RedisHold, nanousd: int, wanted: SharedTaken | None) -> None:
        """Note what was told. Raises what it refuses with, and Spoilt."""
        poor, short, told, accounts = answer[2], answer[3], answer[4:], hold.accounts
        if poor < 0:
            raise Spoilt(accounts[-poor - 1])
        for account in accounts if self.spoilt else ():
            self.spoilt.pop(account.id, None)
        more = 0 if poor or short else nanousd
        for account, spent, held in zip(accounts, told[::2], told[1::2], strict=False):
            self._alone.told(account, spent, held + more)
        if wanted is not None:
            wanted.know(told[2 * len(accounts) :], short)
        if poor:
            if wanted is not None:
                wanted.forget()
            raise over_budget(accounts[poor - 1], nanousd, told[2 * poor - 2], told[2 * poor - 1])

    # Redis is away

    def _hold_alone(self, accounts: Sequence[Account], nanousd: int, wanted: SharedTaken | None) -> RedisHold:
        """By what this process knows."""
        if self._when_away == "refuse" and any(account.limit_nanousd is not None for account in accounts):
            if wanted is not None:
                wanted.forget()
            raise BudgetsAway("budgets can't be checked just now", retry_after_s=1.0)
        if wanted is not None:
            wanted.take_alone(self.workers)
        self._alone.hold(accounts, nanousd, self.workers)
        hold = RedisHold(self, self._local.hold_now((), nanousd), accounts, alone=True)
        self._holds[hold.id] = hold
        return hold

    # What holds tell

    def shrunk(self, hold: RedisHold, given_back: int) -> None:
        """A hold got smaller."""
        if hold.alone:
            self._alone.give_back(hold.accounts, given_back)
        elif hold.accounts:
            self._outbox.shrink(hold.id, hold.accounts, hold.nanousd)

    def settled(self, hold: RedisHold, held: int, spent: int) -> None:
        """A hold is over, or was never answered: such a one doesn't count among what Redis told of."""
        was_told = self._holds.pop(hold.id, None) is not None
        if not hold.accounts:
            return
        if hold.alone:
            self._alone.give_back(hold.accounts, held - spent)
        elif was_told:
            self._alone.settled(hold.accounts, held, spent)
        self._outbox.settle(hold.id, hold.accounts, spent)

    def queue_correct(self, keys: list[str], capacities: Words, tokens: int) -> None:
        """See `limits_shared.Corrections`."""
        self._outbox.correct(keys, capacities, tokens)

    # Beside the requests

    async def flush(self) -> None:
        """Send what is queued, in order. Raises what the wire raises; what was not taken stays queued."""
        async with self._sending:
            while not await self._outbox.send(lambda: self._epoch):
                await self._meet(await self._read_epoch())
                await asyncio.sleep(self._settle_down_s / 10)

    async def _read_epoch(self) -> str:
        """Of the Redis that answers now; one that has none yet gets one."""
        nothing = RedisHold(self, MemoryLedger(self._clock).hold_now((), 0), (), alone=True)
        answer = await self._wire.run(HOLD, *self._words(nothing, 0, None))
        return str(answer[0].decode())

    async def _meet(self, epoch: str) -> None:
        """A Redis we don't know: tell it what every account has spent at least, and what we hold."""
        async with self._meeting:
            if epoch == self._epoch:
                return
            if self._epoch:
                log.warning("redis has lost its data; telling it what this worker and the journal know")
            if not self._recalled or (self._epoch and self._when_away == "refuse"):
                await self._ask_journal()
            await self.seed(self._alone.accounts, self._alone.spent)
            await self._rehold(hold for hold in self._holds.values() if not hold.alone)
            self._epoch = epoch

    async def _ask_journal(self) -> None:
        """Workers that died with Redis tell nothing any more. Raises RedisAway where nobody can say what was spent."""
        if self.recall is None:
            return
        unsent = self._outbox.unsent()
        try:
            async with asyncio.timeout(RECALL_S):
                spent, accounts = await asyncio.to_thread(self.recall)
        except (HeadgateError, OSError, TimeoutError) as fault:
            if await self._wire.ask("HGET", self._prefix + "born", RIGHTED):
                return  # the control process told it already
            raise RedisAway("redis has lost its data and the journal does not answer") from fault
        self.restore({name: amount - unsent.get(name, 0) for name, amount in spent.items()}, accounts)

    async def _rehold(self, holds: Iterable[RedisHold]) -> None:
        for hold in list(holds):
            if hold.accounts:
                keys = [self._prefix + "leases", *self._naming.keys(hold.accounts)]
                words: Words = [self._prefix, hold.id, self._naming.now(), self._lease_s, hold.nanousd]
                await self._wire.run(REHOLD, keys, words)
            hold.alone = False

    async def seed(self, accounts: Sequence[Account], spent: Mapping[str, int]) -> None:
        """Raise each account to what it has spent at least in its running period."""
        if accounts:
            words = raising(accounts, spent, self._clock(), self._naming.now(), self._prefix)
            await self._wire.run(RAISE, *words)

    def restore(self, spent: Mapping[str, int], accounts: Iterable[Account] = ()) -> None:
        """What the journal remembers: a floor, told to a Redis that doesn't know us."""
        self._recalled = True
        self._alone.floor(accounts, spent)

    async def renew(self) -> None:
        """Say that we live: prolongs our leases, counts the workers, and looks after the accounts in use. A server that
        took over from a failed one lacks what that one was told last: what is held it is told again.
        """
        keys = [self._prefix + "leases", self._prefix + "workers"]
        held = [id_ for id_, hold in self._holds.items() if hold.accounts and not hold.alone]
        words = [self._naming.now(), self._lease_s, self._worker, SILENT_S, *held]
        workers, *forgotten = await self._wire.run(PULSE, keys, words)
        self.workers = int(workers)
        epoch = await self._wire.ask("HGET", self._prefix + "born", "epoch")
        if epoch is None or epoch.decode() != self._epoch:
            await self._meet(await self._read_epoch())
        elif not self.is_away:
            await self._rehold(hold for id_ in forgotten if (hold := self._holds.get(id_.decode())) is not None)
            await self._look_after()

    async def _look_after(self) -> None:
        """What others have spent and held meanwhile."""
        due = list({*self._alone.due(), *self.spoilt.values()})
        for first in range(0, len(due), LOOKED_AT_ONCE):
            await asyncio.gather(*map(self._look_at, due[first : first + LOOKED_AT_ONCE]))

    async def _look_at(self, account: Account) -> None:
        try:
            spent, held, start = await self._row(account)
        except (RedisRefused, ValueError) as fault:
            if isinstance(fault, RedisRefused) and not _is_wrong_type(fault):
                raise
            self._note_spoilt(account)
            return
        self.spoilt.pop(account.id, None)
        if start == self._naming.start(account.period, self._clock()):
            self._alone.refresh(account, spent, held)

    async def come_back(self) -> None:
        """Redis answers again: it learns what was spent and is held alone, and the others get a moment for the same."""
        await self.renew()
        await self._rehold(hold for hold in self._holds.values() if hold.alone)
        await self.flush()
        await asyncio.sleep(GRACE_S if self._settle_down_s else 0)
        await self._rehold(hold for hold in self._holds.values() if hold.alone)
        self.is_away = False
        log.warning("redis is back; budgets and limits are shared again")

    async def balance(self, account: Account) -> tuple[int, int]:
        """Spent in the account's last period with any traffic, and held, in nano-USD."""
        return (await self._row(account))[:2]

    async def _row(self, account: Account) -> tuple[int, int, int]:
        row = await self._wire.ask("HMGET", self._prefix + account.id, "spent", "held", "start")
        return int(row[0] or 0), int(row[1] or 0), int(row[2] or -1)

    async def run(self) -> None:
        """Send settlements as they come and the pulse every second, until cancelled."""
        pulse_at = 0.0
        while True:
            self._outbox.wake.clear()
            try:
                if self.is_away:
                    await self.come_back()
                elif time.monotonic() >= pulse_at:
                    await self.renew()
                    pulse_at = time.monotonic() + PULSE_S
                await self.flush()
            except (RedisError, OSError) as fault:
                self._note_away(fault)
                await self._mend(fault)
                await asyncio.sleep(RETRY_S)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, pulse_at - time.monotonic())):
                    await self._outbox.wake.wait()

    async def _mend(self, fault: BaseException) -> None:
        """Where something else stands at a key that all accounts need, it goes: what we know is told anew."""
        if not _is_wrong_type(fault):
            return
        for name, kind in (("born", b"hash"), ("leases", b"zset"), ("workers", b"zset")):
            with suppress(RedisError, OSError):
                found = await self._wire.ask("TYPE", self._prefix + name)
                if found not in (kind, b"none"):
                    await self._wire.ask("DEL", self._prefix + name)
                    log.error("redis had a %s at %s%s; deleted", found.decode(), self._prefix, name)

    async def close(self) -> None:
        """Send what is left, as far as Redis takes it."""
        try:
            await asyncio.wait_for(self.flush(), 2 * self._settle_down_s + 1.0)
        except (RedisError, OSError, TimeoutError) as fault:
            self._note_away(fault)
        await self._wire.close()

    def new_id(self) -> str:
        return self._naming.new_id()

    def _note_away(self, fault: BaseException) -> None:
        if not self.is_away:
            log.warning("redis is away (%s); budgets: %s", fault, self._when_away)
        self.is_away = True

    def _note_spoilt(self, account: Account) -> None:
        if account.id not in self.spoilt:
            log.error("redis has something else than a budget at %s%s; it waits for the journal's word",
                      self._prefix, account.id)  # fmt: skip
        self.spoilt[account.id] = account


def _is_wrong_type(fault: BaseException) -> bool:
    return "WRONGTYPE" in str(fault)


def raising(
    accounts: Sequence[Account], spent: Mapping[str, int], now: float, stated: str | float = "", prefix: str = PREFIX
) -> tuple[list[str], Words]:
    """Keys and arguments of RAISE."""
    words: Words = [stated]
    for account in accounts:
        words += [spent.get(account.id, 0), int(period_start(account.period, now))]
    return [prefix + account.id for account in accounts], words


__all__ = ["RedisAway", "RedisHold", "RedisLedger", "RedisRefused", "raising"]
