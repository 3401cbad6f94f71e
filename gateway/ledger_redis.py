"""Budgets shared by workers and replicas through Redis; the contract of `ledger.Ledger`.

Holding is one script, atomic over all accounts. Settling never waits: it joins a queue that `run` sends, and
each entry is applied once however often it is sent. A hold is a lease: when its worker dies, the next hold
after the lease's end gives the money back, so a crash never eats a budget. While Redis is away, holds are
made against what this process last knew, and what is spent meanwhile is sent when Redis is back.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from gateway.ledger import Account, Clock, MemoryHold, MemoryLedger, over_budget, period_start

log = logging.getLogger("headgate.ledger")

LEASE_S = 120.0
"""A living worker renews its leases in time; a dead one's holds lapse after this long."""
SETTLED_S = 3600
"""How long Redis remembers a settlement, so that one sent twice counts once."""
TIMEOUT_S = 0.1
FLUSH_TIMEOUT_S = 2.0
RETRY_S = 0.5
BATCH = 64
"""Settlements sent at once."""
MAX_QUEUED = 20_000
"""Settlements kept while Redis is away; beyond, those of one account become one sum."""

_ROLL = """
local function roll(key, start)
  if tonumber(redis.call('HGET', key, 'start') or '-1') < tonumber(start) then
    redis.call('HSET', key, 'start', start, 'spent', 0)
  end
end
local function free(prefix, hold)
  local name = prefix .. 'hold:' .. hold
  local held = redis.call('HGETALL', name)
  for i = 1, #held, 2 do redis.call('HINCRBY', held[i], 'held', -held[i + 1]) end
  redis.call('DEL', name)
  redis.call('ZREM', prefix .. 'leases', hold)
end
"""
# KEYS: leases, then accounts. ARGV: prefix, hold, now, lease's end, amount, then each one's limit and
# period start. Answers the index of the account that refuses (0: none), its held, and each one's spent.
_HOLD = (
    _ROLL
    + """
local prefix, hold, now, ends, amount = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 64)
for _, lapsed in ipairs(dead) do free(prefix, lapsed) end
local spents, refused, held_there = {}, 0, 0
for i = 2, #KEYS do
  local limit, start = ARGV[2 + 2 * i], ARGV[3 + 2 * i]
  roll(KEYS[i], start)
  local row = redis.call('HMGET', KEYS[i], 'spent', 'held')
  local spent, held = tonumber(row[1] or '0'), tonumber(row[2] or '0')
  spents[i - 1] = spent
  if refused == 0 and limit ~= '' and spent + held + amount > tonumber(limit) then
    refused, held_there = i - 1, held
  end
end
if refused == 0 then
  for i = 2, #KEYS do
    redis.call('HINCRBY', KEYS[i], 'held', ARGV[5])
    redis.call('HSET', prefix .. 'hold:' .. hold, KEYS[i], ARGV[5])
  end
  redis.call('ZADD', KEYS[1], ends, hold)
end
return {refused, held_there, unpack(spents)}
"""
)
# KEYS: settled marker, leases, then accounts. ARGV: prefix, hold, amount, seconds to remember, period starts.
_SETTLE = (
    _ROLL
    + """
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', ARGV[4]) then return 0 end
free(ARGV[1], ARGV[2])
for i = 3, #KEYS do
  roll(KEYS[i], ARGV[2 + i])
  redis.call('HINCRBY', KEYS[i], 'spent', ARGV[3])
end
return 1
"""
)
# KEYS: as the hold's accounts. ARGV: prefix, hold, amount to keep.
_SHRINK = """
local name = ARGV[1] .. 'hold:' .. ARGV[2]
for _, key in ipairs(KEYS) do
  local held = redis.call('HGET', name, key)
  if held and tonumber(held) > tonumber(ARGV[3]) then
    redis.call('HINCRBY', key, 'held', ARGV[3] - held)
    redis.call('HSET', name, key, ARGV[3])
  end
end
return 1
"""


class _Script:
    """Runs by digest; where Redis (or a proxy before it) doesn't know the digest, by its text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, redis: Redis, keys: Sequence[str], arguments: Sequence[str | int | float]) -> Any:
        given = [str(argument) for argument in arguments]
        try:
            return await redis.evalsha(self.sha, len(keys), *keys, *given)
        except NoScriptError:
            return await redis.eval(self.text, len(keys), *keys, *given)


_Entry = tuple[_Script, list[str], list[str | int | float]]
"""A script to run, its keys and its arguments."""
_HOLDING, _SETTLING, _SHRINKING = _Script(_HOLD), _Script(_SETTLE), _Script(_SHRINK)


class RedisHold:
    """See `ledger.Hold`. `local` is its count in this process, which says whether it is settled."""

    __slots__ = ("_ledger", "accounts", "id", "leased_s", "local")

    def __init__(
        self, ledger: RedisLedger, local: MemoryHold, accounts: Sequence[Account], leased_s: float | None
    ) -> None:
        self._ledger = ledger
        self.local = local
        self.accounts = accounts
        self.id = ledger.new_id()
        self.leased_s = leased_s
        """End of its lease; None: Redis doesn't know it."""

    @property
    def nanousd(self) -> int:
        return self.local.nanousd

    def shrink(self, to: int) -> None:
        if to != self.local.nanousd:
            self.local.shrink(to)
            self._ledger.queue_shrink(self, to)

    def settle(self, nanousd: int) -> bool:
        settled = self.local.settle(nanousd)
        if settled:
            self._ledger.queue_settle(self, nanousd)
        return settled

    def release(self) -> bool:
        return self.settle(0)


class RedisLedger:
    """One per worker. `run` must be running; `close` sends what is left."""

    def __init__(
        self,
        redis: Redis,
        *,
        clock: Clock = time.time,
        prefix: str = "{headgate}:ledger:",
        lease_s: float = LEASE_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`prefix` holds a hash tag, since a cluster must keep all accounts in one slot."""
        self._redis = redis
        self._clock = clock
        self._prefix = prefix
        self._lease_s = lease_s
        self._timeout_s = timeout_s
        self._local = MemoryLedger(clock)
        self._holds: dict[str, RedisHold] = {}
        self._queue: list[_Entry] = []
        self._wake = asyncio.Event()
        self._sending = asyncio.Lock()
        self._worker = secrets.token_hex(6)
        self._count = 0
        self.is_away = False
        """Redis didn't answer last time."""

    @property
    def outstanding(self) -> int:
        return self._local.outstanding

    @property
    def overrun_nanousd(self) -> int:
        return self._local.overrun_nanousd

    @property
    def queued(self) -> int:
        """Settlements that Redis doesn't have yet."""
        return len(self._queue)

    async def hold(self, accounts: Sequence[Account], nanousd: int) -> RedisHold:
        if nanousd < 0:
            raise ValueError(f"can't hold {nanousd}")
        if not accounts:
            return RedisHold(self, self._local.hold_now((), nanousd), (), None)
        ends_s = self._clock() + self._lease_s
        hold = RedisHold(self, self._local.hold_now((), nanousd), accounts, ends_s)
        try:
            answer = await self._ask(hold, nanousd)
        except (RedisError, OSError, TimeoutError) as error:
            hold.local.release()
            self._note_away(error)
            return self._hold_alone(hold, accounts, nanousd)
        except BaseException:
            hold.release()  # it may have been made although nobody waits for it any more
            raise
        self.is_away = False
        refused, held, *spent = answer
        self._local.restore({account.id: amount for account, amount in zip(accounts, spent, strict=True)})
        if refused:
            hold.local.release()
            raise over_budget(accounts[refused - 1], nanousd, spent[refused - 1], held)
        self._holds[hold.id] = hold
        return hold

    async def _ask(self, hold: RedisHold, nanousd: int) -> list[int]:
        now = self._clock()
        terms: list[str | int | float] = []
        for account in hold.accounts:
            limit = account.limit_nanousd
            terms += ["" if limit is None else limit, int(period_start(account.period, now))]
        keys = [self._prefix + "leases", *self._keys(hold.accounts)]
        arguments = [self._prefix, hold.id, now, hold.leased_s or 0.0, nanousd, *terms]
        return cast(
            list[int], await asyncio.wait_for(_HOLDING.run(self._redis, keys, arguments), self._timeout_s)
        )

    def _hold_alone(self, lost: RedisHold, accounts: Sequence[Account], nanousd: int) -> RedisHold:
        """By what this process knows. The lost hold may have been made all the same, so it is taken back."""
        self._enqueue_settle(lost.id, accounts, 0)
        return RedisHold(self, self._local.hold_now(accounts, nanousd), accounts, None)

    def restore(self, spent: Mapping[str, int]) -> None:
        """Only what this process falls back on: Redis remembers for itself (see `seed`)."""
        self._local.restore(spent)

    async def seed(self, accounts: Sequence[Account], spent: Mapping[str, int]) -> None:
        """Write what the journal remembers to accounts that Redis doesn't know, after it lost its data."""
        now = self._clock()
        for account in accounts:
            key = self._prefix + account.id
            if await cast(Awaitable[bool], self._redis.hsetnx(key, "spent", str(spent.get(account.id, 0)))):
                start = str(int(period_start(account.period, now)))
                await self._redis.hset(key, "start", start)

    async def balance(self, account: Account) -> tuple[int, int]:
        """Spent in the account's last period with any traffic, and held, in nano-USD."""
        row = await cast(
            Awaitable[list[Any]], self._redis.hmget(self._prefix + account.id, ["spent", "held"])
        )
        return int(row[0] or 0), int(row[1] or 0)

    def new_id(self) -> str:
        self._count += 1
        return f"{self._worker}{self._count:x}"

    def queue_shrink(self, hold: RedisHold, to: int) -> None:
        if hold.accounts and hold.leased_s is not None:
            self._enqueue(_SHRINKING, self._keys(hold.accounts), [self._prefix, hold.id, to])

    def queue_settle(self, hold: RedisHold, nanousd: int) -> None:
        self._holds.pop(hold.id, None)
        if hold.accounts:
            self._enqueue_settle(hold.id, hold.accounts, nanousd)

    def _enqueue_settle(self, hold_id: str, accounts: Sequence[Account], nanousd: int) -> None:
        now = self._clock()
        keys = [f"{self._prefix}settled:{hold_id}", self._prefix + "leases", *self._keys(accounts)]
        starts = [int(period_start(account.period, now)) for account in accounts]
        self._enqueue(_SETTLING, keys, [self._prefix, hold_id, nanousd, SETTLED_S, *starts])

    def _enqueue(self, script: _Script, keys: list[str], arguments: list[str | int | float]) -> None:
        self._queue.append((script, keys, arguments))
        if len(self._queue) > MAX_QUEUED:
            self._queue[BATCH:] = self._sums(self._queue[BATCH:])
        self._wake.set()

    def _sums(self, entries: Sequence[_Entry]) -> list[_Entry]:
        """One settlement an account instead of one a request; the holds themselves lapse."""
        sums: dict[str, tuple[int, str | int | float]] = {}
        for script, keys, arguments in entries:
            if script is _SETTLING:
                for key, start in zip(keys[2:], arguments[4:], strict=True):
                    sums[key] = (sums.get(key, (0, 0))[0] + int(arguments[2]), start)
        found: list[_Entry] = []
        for key, (amount, start) in sums.items():
            id_ = self.new_id()
            keys = [f"{self._prefix}settled:{id_}", self._prefix + "leases", key]
            found.append((_SETTLING, keys, [self._prefix, id_, amount, SETTLED_S, start]))
        return found

    def _keys(self, accounts: Sequence[Account]) -> list[str]:
        return [self._prefix + account.id for account in accounts]

    async def flush(self) -> None:
        """Send what is queued, in order. Raises what Redis raises; what was not taken stays queued."""
        async with self._sending:
            while self._queue:
                await self._send(self._queue[:BATCH])

    async def _send(self, batch: Sequence[_Entry]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for script, keys, arguments in batch:
            pipeline.evalsha(script.sha, len(keys), *keys, *map(str, arguments))
        answers = await asyncio.wait_for(pipeline.execute(raise_on_error=False), FLUSH_TIMEOUT_S)
        for (script, keys, arguments), answer in zip(batch, answers, strict=True):
            if isinstance(answer, NoScriptError):
                await asyncio.wait_for(script.run(self._redis, keys, arguments), FLUSH_TIMEOUT_S)
            elif isinstance(answer, Exception):
                raise answer
            self._queue.pop(0)

    async def renew(self) -> None:
        """Prolong the leases of this worker's open holds."""
        if self._holds:
            ends_s = self._clock() + self._lease_s
            await self._redis.zadd(self._prefix + "leases", dict.fromkeys(self._holds, ends_s), xx=True)

    async def run(self) -> None:
        """Send settlements as they come and renew leases, until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self.flush()
                await self.renew()
            except (RedisError, OSError) as error:
                self._note_away(error)
                await asyncio.sleep(RETRY_S)
                continue
            try:
                await asyncio.wait_for(self._wake.wait(), self._lease_s / 3)
            except TimeoutError:
                pass

    async def close(self) -> None:
        """Send what is left, as far as Redis takes it."""
        try:
            await self.flush()
        except (RedisError, OSError) as error:
            self._note_away(error)

    def _note_away(self, error: BaseException) -> None:
        if not self.is_away:
            log.warning("redis is away (%s); budgets go by what this worker knows", type(error).__name__)
        self.is_away = True
