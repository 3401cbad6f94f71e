"""A `ledger.Ledger` whose budgets and rate limits workers and replicas share through Redis.

Holding is one script in one round trip, atomic over all accounts and limits. Settling never waits: it joins a queue
that `run` sends, and each entry is applied once however often it is sent. A hold is a lease: when its worker dies, the
next hold after the lease's end gives the money back, so a crash never uses up a budget.

When Redis has lost its data, the first worker to notice reads from the journal what was spent, before anything is held
or booked again; where the journal can't be read either, Redis counts as away. While Redis is away, callers with a
budget are refused (`refuse`) or served from each worker's share of what was left (`share`, see `ledger_offline`). What
is spent meanwhile is sent when Redis is back, a second before holds are made in Redis again.
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
from gateway.money.ledger import Account, Clock, MemoryHold, MemoryLedger, Recall, over_budget, period_start
from gateway.money.ledger_offline import OfflineLedger
from gateway.money.ledger_outbox import Naming, Outbox
from gateway.money.ledger_scripts import HOLD, PULSE, RAISE, REHOLD
from gateway.money.limits import NOTHING_TAKEN, Taken
from gateway.money.limits_shared import Arguments, SharedTaken
from gateway.redis_wire import RedisAway, RedisRefused, RedisWire

log = logging.getLogger("headgate.ledger")

PREFIX = "{headgate}:ledger:"
RIGHTED = "righted"
"""Field of the hash `born`: set once an emptied Redis has been given what the journal knows was spent."""
LEASE_S = 120.0
"""A hold whose worker doesn't renew its lease lapses after this long."""
SETTLE_DOWN_S = 1.5
"""After Redis has lost its data, nothing is held for this long, in which every worker sends what it knows."""
RETRY_S = 0.25
PULSE_S = 1.0
READ_AT_ONCE = 100
"""Number of accounts that are read in one write."""
SILENT_S = 5.0
"""A worker without a pulse for this long doesn't count when budgets are shared out."""
GRACE_S = 1.0
"""When Redis is back, every worker has this long to send what it spent meanwhile, before holds are made in Redis."""
RECALL_S = 2.0
"""Longest wait for the journal to say what was spent."""
TRIES = 2
"""Attempts to hold before Redis counts as away: one late answer is no outage."""

WhenAway = Literal["share", "refuse"]


class RedisHold:
    """A hold in a `RedisLedger`. `local` is the same hold in this process, which knows whether it is settled."""

    __slots__ = ("_ledger", "accounts", "id", "local", "offline")

    def __init__(self, ledger: RedisLedger, local: MemoryHold, accounts: Sequence[Account], *, offline: bool) -> None:
        self._ledger = ledger
        self.local = local
        self.accounts = accounts
        self.id = ledger.new_id()
        self.offline = offline
        """Redis doesn't know this hold."""

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


class Unreadable(Exception):
    """The Redis key of this account holds something else than an account."""

    def __init__(self, account: Account) -> None:
        self.account = account


class RedisLedger:
    """The ledger of one worker. `run` must be running; `close` sends what is still queued. `clock`: as for `Naming`."""

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
        self._offline = OfflineLedger(self._clock)
        self._outbox = Outbox(wire, self._naming, self._offline, settle_down_s)
        self._holds: dict[str, RedisHold] = {}
        self._sending = asyncio.Lock()
        self._introducing = asyncio.Lock()
        self._epoch = ""
        self._recalled = False
        self.recall: Recall | None = None
        self.workers = 1
        """Number of workers of all replicas at the last pulse."""
        self.is_away = False
        """Redis didn't answer the last request."""
        self.spoilt: dict[str, Account] = {}
        """Accounts whose Redis key holds something else, by id. For these alone Redis counts as away."""

    @property
    def outstanding(self) -> int:
        return self._local.outstanding

    @property
    def overrun_nanousd(self) -> int:
        return self._local.overrun_nanousd

    @property
    def queued(self) -> int:
        """Number of settlements that Redis has not booked yet."""
        return len(self._outbox.settlements)

    # Holding

    async def hold(self, accounts: Sequence[Account], nanousd: int, taken: Taken = NOTHING_TAKEN) -> RedisHold:
        """Hold the money and take from the rate limits in one step, or neither. Raises OverBudget, RateLimited, or
        BudgetsAway where Redis is away and budgets are to be refused then.
        """
        if nanousd < 0:
            raise ValueError(f"can't hold {nanousd} nano-dollars")
        shared = taken if isinstance(taken, SharedTaken) else None
        if not accounts and shared is None:
            return RedisHold(self, self._local.hold_now((), nanousd), (), offline=True)
        for _ in range(0 if self.is_away else TRIES):
            hold = RedisHold(self, self._local.hold_now((), nanousd), accounts, offline=False)
            try:
                self._apply(await self._run_hold(hold, nanousd, shared), hold, nanousd, shared)
            except RedisError as fault:
                hold.settle(0)  # Redis may have made the hold without our having its answer
                failed = fault
            except PolicyError:
                hold.local.settle(0)
                raise
            except Unreadable as fault:
                hold.local.settle(0)
                self._note_spoilt(fault.account)
                return self._hold_offline(accounts, nanousd, shared)
            except BaseException:
                hold.settle(0)
                raise
            else:
                self._holds[hold.id] = hold
                return hold
        if not self.is_away:
            self._note_away(failed)
        return self._hold_offline(accounts, nanousd, shared)

    async def _run_hold(self, hold: RedisHold, nanousd: int, shared: SharedTaken | None) -> list[Any]:
        """Run HOLD, if need be after a Redis that has lost its data was sent what this worker knows."""
        while True:
            arguments = self._hold_arguments(hold.id, hold.accounts, nanousd, shared)
            answer = cast(list[Any], await self._wire.run(HOLD, *arguments))
            if not answer[1]:
                return answer
            await self._introduce(answer[0].decode())
            await asyncio.sleep(float(answer[1]))

    def _hold_arguments(
        self, id: str, accounts: Sequence[Account], nanousd: int, shared: SharedTaken | None
    ) -> tuple[list[str], Arguments]:
        now = self._clock()
        keys = [self._prefix + "leases", *self._naming.keys(accounts)]
        arguments: Arguments = [self._prefix, id, self._naming.now(), self._lease_s, nanousd, secrets.token_hex(8),
                            self._settle_down_s, shared.tokens if shared else 0, self._epoch,
                            len(accounts)]  # fmt: skip
        for account in accounts:
            limit = account.limit_nanousd
            arguments += ["" if limit is None else limit, self._naming.start(account.period, now)]
        if shared is not None:
            keys += [self._prefix + key for key in shared.names()]
            arguments += shared.capacities()
        return keys, arguments

    def _apply(self, answer: Sequence[Any], hold: RedisHold, nanousd: int, shared: SharedTaken | None) -> None:
        """Note the balances and levels in HOLD's answer. Raises OverBudget, RateLimited, or Unreadable."""
        over, short, numbers, accounts = answer[2], answer[3], answer[4:], hold.accounts
        if over < 0:
            raise Unreadable(accounts[-over - 1])
        for account in accounts if self.spoilt else ():
            self.spoilt.pop(account.id, None)
        more = 0 if over or short else nanousd
        for account, spent, held in zip(accounts, numbers[::2], numbers[1::2], strict=False):
            self._offline.update(account, spent, held + more)
        if shared is not None:
            shared.apply(numbers[2 * len(accounts) :], short)
        if over:
            if shared is not None:
                shared.cancel()
            raise over_budget(accounts[over - 1], nanousd, numbers[2 * over - 2], numbers[2 * over - 1])

    # Redis is away

    def _hold_offline(self, accounts: Sequence[Account], nanousd: int, shared: SharedTaken | None) -> RedisHold:
        """Hold from this worker's share of each account and limit."""
        if self._when_away == "refuse" and any(account.limit_nanousd is not None for account in accounts):
            if shared is not None:
                shared.cancel()
            raise BudgetsAway("budgets can't be checked just now", retry_after_s=1.0)
        if shared is not None:
            shared.take_offline(self.workers)
        self._offline.hold(accounts, nanousd, self.workers)
        hold = RedisHold(self, self._local.hold_now((), nanousd), accounts, offline=True)
        self._holds[hold.id] = hold
        return hold

    # Called by holds

    def shrunk(self, hold: RedisHold, given_back: int) -> None:
        """A hold was shrunk."""
        if hold.offline:
            self._offline.give_back(hold.accounts, given_back)
        elif hold.accounts:
            self._outbox.shrink(hold.id, hold.accounts, hold.nanousd)

    def settled(self, hold: RedisHold, held: int, spent: int) -> None:
        """A hold has ended. One that Redis never confirmed is not part of the held amounts that Redis has stated."""
        was_confirmed = self._holds.pop(hold.id, None) is not None
        if not hold.accounts:
            return
        if hold.offline:
            self._offline.give_back(hold.accounts, held - spent)
        elif was_confirmed:
            self._offline.note_settled(hold.accounts, held, spent)
        self._outbox.settle(hold.id, hold.accounts, spent)

    def queue_correct(self, keys: list[str], capacities: Arguments, tokens: int) -> None:
        """See `limits_shared.Corrections`."""
        self._outbox.correct(keys, capacities, tokens)

    # Background work

    async def flush(self) -> None:
        """Send what is queued, in order. Raises what the wire raises; what Redis has not taken stays queued."""
        async with self._sending:
            while not await self._outbox.send(lambda: self._epoch):
                await self._introduce(await self._read_epoch())
                await asyncio.sleep(self._settle_down_s / 10)

    async def _read_epoch(self) -> str:
        """The epoch of the Redis that answers now, which draws one if it has none."""
        answer = await self._wire.run(HOLD, *self._hold_arguments(self.new_id(), (), 0, None))
        return str(answer[0].decode())

    async def _introduce(self, epoch: str) -> None:
        """Send a Redis of another epoch what every account has spent at least, and this worker's holds."""
        async with self._introducing:
            if epoch == self._epoch:
                return
            if self._epoch:
                log.warning("redis has lost its data; restoring it from what this worker and the journal know")
            if not self._recalled or (self._epoch and self._when_away == "refuse"):
                await self._ask_journal()
            await self.seed(self._offline.accounts, self._offline.spent)
            await self._rehold(hold for hold in self._holds.values() if not hold.offline)
            self._epoch = epoch

    async def _ask_journal(self) -> None:
        """Read past spending from the journal, since workers that ended with Redis can't send theirs. Raises RedisAway
        where neither the journal nor Redis knows it.
        """
        if self.recall is None:
            return
        unsent = self._outbox.unsent()
        try:
            async with asyncio.timeout(RECALL_S):
                spent, accounts = await asyncio.to_thread(self.recall)
        except (HeadgateError, OSError, TimeoutError) as fault:
            if await self._wire.ask("HGET", self._prefix + "born", RIGHTED):
                return  # the control process has restored it already
            raise RedisAway("redis has lost its data and the journal does not answer") from fault
        self.restore({name: amount - unsent.get(name, 0) for name, amount in spent.items()}, accounts)

    async def _rehold(self, holds: Iterable[RedisHold]) -> None:
        for hold in list(holds):
            if hold.accounts:
                keys = [self._prefix + "leases", *self._naming.keys(hold.accounts)]
                arguments: Arguments = [self._prefix, hold.id, self._naming.now(), self._lease_s, hold.nanousd]
                await self._wire.run(REHOLD, keys, arguments)
            hold.offline = False

    async def seed(self, accounts: Sequence[Account], spent: Mapping[str, int]) -> None:
        """Raise each account to what it has spent at least in its running period."""
        if accounts:
            keys, arguments = raising(accounts, spent, self._clock(), self._naming.now(), self._prefix)
            await self._wire.run(RAISE, keys, arguments)

    def restore(self, spent: Mapping[str, int], accounts: Iterable[Account] = ()) -> None:
        """See `Ledger.restore`. A Redis that has lost its data is raised to these amounts."""
        self._recalled = True
        self._offline.raise_spent(accounts, spent)

    async def renew(self) -> None:
        """Prolong this worker's leases, count the workers, and read the accounts that are due. Holds that Redis has
        forgotten are sent again: a replica that took over from a failed server lacks its last writes.
        """
        keys = [self._prefix + "leases", self._prefix + "workers"]
        held = [id_ for id_, hold in self._holds.items() if hold.accounts and not hold.offline]
        arguments = [self._naming.now(), self._lease_s, self._worker, SILENT_S, *held]
        workers, *forgotten = await self._wire.run(PULSE, keys, arguments)
        self.workers = int(workers)
        epoch = await self._wire.ask("HGET", self._prefix + "born", "epoch")
        if epoch is None or epoch.decode() != self._epoch:
            await self._introduce(await self._read_epoch())
        elif not self.is_away:
            await self._rehold(hold for id_ in forgotten if (hold := self._holds.get(id_.decode())) is not None)
            await self._refresh()

    async def _refresh(self) -> None:
        """Read what all workers have spent and held in the accounts that are due."""
        due = list({*self._offline.due(), *self.spoilt.values()})
        for first in range(0, len(due), READ_AT_ONCE):
            await asyncio.gather(*map(self._refresh_one, due[first : first + READ_AT_ONCE]))

    async def _refresh_one(self, account: Account) -> None:
        try:
            spent, held, start = await self._read_row(account)
        except (RedisRefused, ValueError) as fault:
            if isinstance(fault, RedisRefused) and not _is_wrong_type(fault):
                raise
            self._note_spoilt(account)
            return
        self.spoilt.pop(account.id, None)
        if start == self._naming.start(account.period, self._clock()):
            self._offline.refresh(account, spent, held)

    async def come_back(self) -> None:
        """Redis answers again: send it what was spent and held meanwhile, and wait until the other workers have done
        the same.
        """
        await self.renew()
        await self._rehold(hold for hold in self._holds.values() if hold.offline)
        await self.flush()
        await asyncio.sleep(GRACE_S if self._settle_down_s else 0)
        await self._rehold(hold for hold in self._holds.values() if hold.offline)
        self.is_away = False
        log.warning("redis is back; budgets and limits are shared again")

    async def balance(self, account: Account) -> tuple[int, int]:
        """Nano-dollars spent in the account's last period with any traffic, and held."""
        return (await self._read_row(account))[:2]

    async def _read_row(self, account: Account) -> tuple[int, int, int]:
        row = await self._wire.ask("HMGET", self._prefix + account.id, "spent", "held", "start")
        return int(row[0] or 0), int(row[1] or 0), int(row[2] or -1)

    async def run(self) -> None:
        """Send settlements as they are queued and a pulse every second, until cancelled."""
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
                await self._repair(fault)
                await asyncio.sleep(RETRY_S)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, pulse_at - time.monotonic())):
                    await self._outbox.wake.wait()

    async def _repair(self, fault: BaseException) -> None:
        """Delete keys of the wrong type that all accounts need; they are then written anew."""
        if not _is_wrong_type(fault):
            return
        for name, expected in (("born", b"hash"), ("leases", b"zset"), ("workers", b"zset")):
            with suppress(RedisError, OSError):
                kind = await self._wire.ask("TYPE", self._prefix + name)
                if kind not in (expected, b"none"):
                    await self._wire.ask("DEL", self._prefix + name)
                    log.error("redis had a %s at %s%s; deleted", kind.decode(), self._prefix, name)

    async def close(self) -> None:
        """Send what is queued, as far as Redis takes it, and disconnect."""
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
            log.error("redis has something else than a budget at %s%s; control restores it from the journal",
                      self._prefix, account.id)  # fmt: skip
        self.spoilt[account.id] = account


def _is_wrong_type(fault: BaseException) -> bool:
    return "WRONGTYPE" in str(fault)


def raising(
    accounts: Sequence[Account], spent: Mapping[str, int], now: float, stated: str | float = "", prefix: str = PREFIX
) -> tuple[list[str], Arguments]:
    """Keys and arguments of RAISE. `stated` is the time to count by; empty where Redis' own clock counts."""
    arguments: Arguments = [stated]
    for account in accounts:
        arguments += [spent.get(account.id, 0), int(period_start(account.period, now))]
    return [prefix + account.id for account in accounts], arguments
