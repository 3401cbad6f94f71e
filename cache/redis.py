"""The store that replicas share: stock Redis, no modules, each call with a deadline in milliseconds.

Redis may be down, slow, emptied or filled by others; each of these is a miss. Where others wrote over a tenant's
books, new ones are begun. A value is served only when it
is whole, was written for this very key (so a reply that belongs to another question is noticed) and carries
its tenant's current epoch. Deleting a tenant draws a new epoch, which every replica reads together with the
value: the deletion holds before the next request anywhere.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from dataclasses import replace
from functools import partial
from hashlib import blake2b

from redis import asyncio as aioredis
from redis.exceptions import ResponseError

from cache.codec import pack, unpack
from cache.entry import Entry
from cache.link import RedisLink, Script
from cache.store import StoreStats, alive

ENTRY_BYTES = 600
"""What an entry weighs in Redis beside its value."""
_TOUCHES = 128
"""How many entries' hits are written with one put."""
_TENANTS = 1024
"""How many tenants' hits are kept in mind until their next put."""

# Everything of one tenant lies in one slot: {t}e:KEY values, {t}epoch, and for eviction {t}z (greedy dual
# scores), {t}x (expiries), {t}h (KEY -> size, worth of a hit, epoch), {t}m (used bytes, floor).
_BOOKS = ("epoch", "z", "x", "h", "m")
_EPOCH = re.compile(r"[0-9a-f]{16}")
_HELD = """
local t = KEYS[1]
local z, x, h, m = t..'z', t..'x', t..'h', t..'m'
local function held(k)
  local size, worth, epoch = string.match(redis.call('HGET', h, k) or '', '^(%S+) (%S+) (%S+)$')
  return tonumber(size), tonumber(worth), epoch
end
local function drop(k)
  local size = held(k)
  redis.call('ZREM', z, k)
  redis.call('ZREM', x, k)
  redis.call('HDEL', h, k)
  if size then redis.call('HINCRBY', m, 'used', -size) end
  return redis.call('UNLINK', t..'e:'..k)
end
local function number(n) return string.format('%.17g', n) end
"""
_PUT = (
    _HELD
    + """
local member, blob, epoch, ttl_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local size, value, now, quota = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local floor = tonumber(redis.call('HGET', m, 'floor') or '0')
for i = 9, #ARGV, 2 do
  local _, worth = held(ARGV[i])
  if worth then
    local score = math.max(floor, tonumber(redis.call('ZSCORE', z, ARGV[i]) or '0'))
    redis.call('ZADD', z, 'XX', number(score + tonumber(ARGV[i + 1]) * worth), ARGV[i])
  end
end
drop(member)
for _, k in ipairs(redis.call('ZRANGEBYSCORE', x, '-inf', now, 'LIMIT', 0, 64)) do drop(k) end
local evicted = 0
while tonumber(redis.call('HGET', m, 'used') or '0') + size > quota do
  local least = redis.call('ZRANGE', z, 0, 0, 'WITHSCORES')
  if #least == 0 then break end
  floor = math.max(floor, tonumber(least[2]))
  drop(least[1])
  evicted = evicted + 1
end
if evicted > 0 then redis.call('HSET', m, 'floor', number(floor)) end
redis.call('SET', t..'e:'..member, blob, 'PX', ttl_ms)
redis.call('ZADD', z, number(floor + value), member)
redis.call('ZADD', x, number(now + ttl_ms / 1000), member)
redis.call('HSET', h, member, size..' '..ARGV[6]..' '..epoch)
redis.call('HINCRBY', m, 'used', size)
return evicted
"""
)
_DROP = (
    _HELD
    + """
local spared, gone = ARGV[1], 0
for i = 2, #ARGV do
  local _, _, epoch = held(ARGV[i])
  if epoch ~= spared then gone = gone + drop(ARGV[i]) end
end
return gone
"""
)


class RedisStore:
    """Keeps entries of all tenants, each tenant within `max_tenant_bytes`, by greedy dual size frequency."""

    def __init__(self, link: RedisLink, *, max_tenant_bytes: int = 1 << 28, prefix: str = "hg:c:") -> None:
        if max_tenant_bytes <= 0:
            raise ValueError(f"max_tenant_bytes must be positive, not {max_tenant_bytes}")
        self._link = link
        self._max_tenant_bytes = max_tenant_bytes
        self._prefix = prefix
        self._put_script, self._drop_script = Script(_PUT), Script(_DROP)
        self._stats = StoreStats()
        self._touched: dict[str, dict[str, int]] = {}
        self._purges: set[asyncio.Task[None]] = set()

    async def get(self, key: bytes, *, tenant: str, now_s: float) -> Entry | None:
        """Return the living entry of this tenant under `key`, if its epoch is the tenant's current one."""
        slot, member = self._slot(tenant), key.hex()
        names = (f"{slot}e:{member}", f"{slot}epoch")
        entry = await self._link.run(lambda client: self._get(client, names, key), None)
        if entry is None or not alive(entry, tenant=tenant, now_s=now_s):
            self._stats.misses += 1
            return None
        self._stats.hits += 1
        self._touch(slot, member)
        return entry

    async def put(self, key: bytes, entry: Entry) -> bool:
        """Keep an entry under `key`."""
        if len(entry.body) + ENTRY_BYTES > self._max_tenant_bytes or entry.ttl_s <= 0:
            self._stats.refused += 1
            return False
        evicted = await self._link.run(lambda client: self._put(client, key, entry), None)
        if evicted is None:
            return False
        self._stats.puts += 1
        self._stats.evicted += evicted
        return True

    async def delete(self, entry_id: str, *, tenant: str | None = None) -> bool:
        """Forget one entry; with `tenant`, only if it is that tenant's."""
        return await self._link.run(lambda client: self._delete(client, entry_id, tenant), False)

    async def delete_tenant(self, tenant: str) -> bool:
        """Draw the tenant a new epoch, which ends all its entries everywhere; their bytes follow behind."""
        slot, epoch = self._slot(tenant), _new_epoch()
        done = await self._link.run(lambda client: client.set(f"{slot}epoch", epoch), None)
        if not done:
            return False
        task = asyncio.create_task(self._purge(slot, epoch))
        self._purges.add(task)
        task.add_done_callback(self._purges.discard)
        return True

    def stats(self) -> StoreStats:
        """Return this process's counts; what Redis holds in all is Redis's to say."""
        return replace(self._stats, failures=self._link.failures)

    async def close(self) -> None:
        """Finish purges under way; the link is its owner's to close."""
        await asyncio.gather(*self._purges)

    def _slot(self, tenant: str) -> str:
        """The tenant's key prefix: one hash slot, and no tenant's name readable in it."""
        return f"{self._prefix}{{{blake2b(tenant.encode(), digest_size=10).hexdigest()}}}"

    async def _get(self, client: aioredis.Redis, names: tuple[str, str], key: bytes) -> Entry | None:
        blob, epoch = await client.mget(names)
        if not isinstance(blob, bytes):
            return None
        unpacked = unpack(blob, key=key)
        if unpacked is None:
            self._stats.corrupt += 1
            return None
        return unpacked[1] if isinstance(epoch, bytes) and unpacked[0].encode() == epoch else None

    def _touch(self, slot: str, member: str) -> None:
        if len(self._touched) >= _TENANTS and slot not in self._touched:
            self._touched.clear()
        touched = self._touched.setdefault(slot, {})
        if member in touched or len(touched) < _TOUCHES:
            touched[member] = touched.get(member, 0) + 1

    async def _put(self, client: aioredis.Redis, key: bytes, entry: Entry) -> int:
        slot = self._slot(entry.tenant)
        try:
            return await self._enter(client, slot, key, entry)
        except ResponseError as error:
            if "WRONGTYPE" in str(error) or "not an integer" in str(error):
                await client.unlink(*(f"{slot}{book}" for book in _BOOKS))
            raise

    async def _enter(self, client: aioredis.Redis, slot: str, key: bytes, entry: Entry) -> int:
        epoch, member = await self._epoch(client, slot), key.hex()
        blob = pack(key, epoch, entry)
        size, ttl_ms = len(blob) + ENTRY_BYTES, max(1, int(entry.ttl_s * 1000))
        touched = [word for item in self._touched.pop(slot, {}).items() for word in item]
        await client.set(f"{self._prefix}i:{entry.id}", f"{slot} {member}", px=ttl_ms)
        numbers = (ttl_ms, size, repr(entry.cost_usd / size), repr(entry.created_s), self._max_tenant_bytes)
        return int(await self._put_script.run(client, slot, (member, blob, epoch, *numbers, *touched)))

    async def _epoch(self, client: aioredis.Redis, slot: str) -> str:
        """The tenant's current one, drawn where there is none or what is there was never drawn."""
        drawn = _new_epoch()
        held = await client.set(f"{slot}epoch", drawn, nx=True, get=True)
        if held is None or _EPOCH.fullmatch(_text(held)):
            return _text(held) or drawn
        await client.set(f"{slot}epoch", drawn)
        return drawn

    async def _delete(self, client: aioredis.Redis, entry_id: str, tenant: str | None) -> bool:
        name = f"{self._prefix}i:{entry_id}"
        pointer = await client.get(name)
        if pointer is None:
            return False
        slot, _, member = _text(pointer).partition(" ")
        if tenant is not None and slot != self._slot(tenant):
            return False
        blob = await client.get(f"{slot}e:{member}")
        found = unpack(blob, key=bytes.fromhex(member)) if isinstance(blob, bytes) else None
        await client.delete(name)
        if found is None or found[1].id != entry_id:
            return False
        return bool(await self._drop_script.run(client, slot, ("", member)))

    async def _purge(self, slot: str, epoch: str) -> None:
        """Give back the bytes of everything but `epoch`'s, a little at a time."""
        members = await self._link.run(lambda client: client.hkeys(f"{slot}h"), None) or []
        for start in range(0, len(members), 200):
            drop = partial(self._drop_script.run, key=slot, args=[epoch, *members[start : start + 200]])
            await self._link.run(drop, None)


def _text(reply: object) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else ""


def _new_epoch() -> str:
    return secrets.token_hex(8)
