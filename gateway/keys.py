"""API keys and their callers. A key is looked up by its digest, never by its plaintext.

Keys come from the configuration file and from the database; both are in one immutable snapshot, which a reload replaces
whole. No plaintext is kept after the start, and no `repr` or message shows one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from gateway.config.types import MOST_USD, Auth, KeyConfig, TenantConfig
from gateway.errors import CallerError, PolicyError, Unauthorized
from gateway.journal.record import EarlierSecret, KeyRecord, new_id
from gateway.loopback import is_loopback
from gateway.money.ledger import Account
from gateway.money.limits import Limit
from gateway.money.prices import nanousd

PREFIX = "hg-"
GRACE_S = 86_400.0
"""How long an earlier secret still works after a rotation, unless the operator says otherwise."""
LONGEST_GRACE_S = 90 * 86_400.0
Load = Callable[[], Iterable[KeyRecord]]
"""Returns the database's keys, revoked ones included."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of a key, and what the key allows."""

    key_id: str
    name: str
    tenant: str = "default"
    admin: bool = False
    """May use the admin API, as only the master key may."""
    models: frozenset[str] = frozenset()
    """Routes and models that it may ask for; empty where it may ask for all."""
    knobs: bool = True
    """May set x-headgate-* knobs."""
    explore: bool = True
    """Its requests may be used for exploration."""
    accounts: tuple[Account, ...] = ()
    """Budgets of the key and of its tenant; the route's budget is added for each request."""
    limits: tuple[Limit, ...] = ()
    expires_s: float | None = None
    disabled: bool = False

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models


MASTER = Caller("master", "master", admin=True)
ANYONE = Caller("open", "open", admin=True)
"""The caller of a gateway without any key, which answers only clients on its own machine."""


def hash_key(key: str) -> str:
    """The digest that is stored of a key. Keys are 192 random bits, so one round of SHA-256 is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key(name: str, now: float, *, tenant: str = "default") -> tuple[str, KeyRecord]:
    """A new key's plaintext, to be shown once, and its record, to be stored. The record allows everything until it is
    restricted by `msgspec.structs.replace`.
    """
    key = new_secret()
    record = KeyRecord(
        id=new_id("key"), name=name, key_hash=hash_key(key), prefix=_prefix(key), created_s=now, tenant=tenant
    )
    return key, record


def new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(24)


def rotated(record: KeyRecord, secret: str, now: float, grace_s: float) -> KeyRecord:
    """The key with a new secret; its earlier secrets work for at most another `grace_s` seconds. Raises CallerError for
    a revoked key.
    """
    if record.revoked_s is not None:
        raise CallerError(f"the key {record.name!r} is revoked: make a new one", status=409, code="key_revoked")
    ends_s = now + grace_s
    secrets_before = (*record.earlier, EarlierSecret(key_hash=record.key_hash, until_s=ends_s))
    earlier = tuple(replace(one, until_s=min(one.until_s, ends_s)) for one in secrets_before if one.until_s >= now)
    return replace(record, key_hash=hash_key(secret), prefix=_prefix(secret), earlier=earlier)


def _prefix(secret: str) -> str:
    return secret[:7]


def revoked(record: KeyRecord) -> KeyRecord:
    """The key, revoked from now on; one that was revoked before keeps the time of that."""
    return record if record.revoked_s is not None else replace(record, revoked_s=time.time())


class Keyring:
    """All keys of this gateway."""

    def __init__(self, auth: Auth, load: Load = tuple) -> None:
        self._master = hashlib.sha256(auth.master_key.encode()).digest() if auth.master_key else b""
        self._tenants = {tenant.name: tenant for tenant in auth.tenants}
        self._file = {hash_key(key.key): _caller(f"file:{key.name}", key, self._tenants) for key in auth.keys}
        self._load = load
        self._callers: Mapping[str, Caller] = self._file
        self.reload()

    def __repr__(self) -> str:
        return f"Keyring({len(self._callers)} keys)"

    @property
    def is_open(self) -> bool:
        """Whether there is no key at all, so that clients on this machine need none."""
        return not self._master and not self._callers

    @property
    def callers(self) -> Iterable[Caller]:
        """The caller of each secret; those of earlier secrets come after those of the database's current ones."""
        return self._callers.values()

    def adopt(self, auth: Auth) -> None:
        """Apply changed tenants, whose budgets their keys share."""
        if auth.tenants != list(self._tenants.values()):
            self._tenants = {tenant.name: tenant for tenant in auth.tenants}
            self._file = {hash_key(key.key): _caller(f"file:{key.name}", key, self._tenants) for key in auth.keys}
            self.reload()

    def reload(self) -> None:
        """Read the database's keys again. A request sees either the old snapshot or the new one."""
        stored, earlier = {}, {}
        for record in self._load():
            caller = _caller(record.id, record, self._tenants, record.expires_s, record.revoked_s is not None)
            stored[record.key_hash] = caller
            for one in record.earlier:
                earlier[one.key_hash] = ends_by(caller, one.until_s)
        self._callers = {**stored, **earlier, **self._file}

    def identify(
        self, authorization: bytes | None, x_api_key: bytes | None, client_host: str, now: float
    ) -> Caller:
        """The owner of the key in `Authorization: Bearer KEY`, or else in `x_api_key`. Raises Unauthorized for an
        unknown or missing key, PolicyError for one that is disabled or has expired.
        """
        key = _bearer(authorization) or x_api_key
        if not key:
            return self._without_key(client_host)
        digest = hashlib.sha256(key)
        caller = self._callers.get(digest.hexdigest())
        if caller is not None:
            return caller if caller.expires_s is None and not caller.disabled else _valid(caller, now)
        if self._master and hmac.compare_digest(self._master, digest.digest()):
            return MASTER
        if self.is_open:
            return self._without_key(client_host)
        raise Unauthorized("Incorrect API key provided.")

    def _without_key(self, client_host: str) -> Caller:
        if not self.is_open:
            raise Unauthorized("You didn't provide an API key: send it as 'Authorization: Bearer KEY'.")
        if not is_loopback(client_host):
            raise Unauthorized("This gateway has no key set, so it answers its own machine only: make a key first.")
        return ANYONE


def _bearer(authorization: bytes | None) -> bytes:
    """The token of `Bearer TOKEN`, in any letter case; empty where there is none."""
    if authorization is None or authorization[:7].lower() != b"bearer ":
        return b""
    return authorization[7:].strip()


def _valid(caller: Caller, now: float) -> Caller:
    if caller.disabled:
        raise PolicyError(f"The API key '{caller.name}' is disabled.", status=401, code="invalid_api_key")
    if caller.expires_s is not None and now >= caller.expires_s:
        raise PolicyError(f"The API key '{caller.name}' has expired.", status=401, code="invalid_api_key")
    return caller


def ends_by(caller: Caller, until_s: float) -> Caller:
    ends_s = until_s if caller.expires_s is None else min(until_s, caller.expires_s)
    return dataclasses.replace(caller, expires_s=ends_s)


def _caller(
    id: str,
    key: KeyConfig | KeyRecord,
    tenants: Mapping[str, TenantConfig],
    expires_s: float | None = None,
    disabled: bool = False,
) -> Caller:
    return Caller(
        key_id=id,
        name=key.name,
        tenant=key.tenant,
        models=frozenset(key.models),
        knobs=key.knobs,
        explore=key.explore,
        accounts=_accounts(id, key, tenants),
        limits=(Limit(f"key:{id}", key.rpm, key.tpm),) if key.rpm is not None or key.tpm is not None else (),
        expires_s=expires_s,
        disabled=disabled,
    )


def _accounts(
    key_id: str, key: KeyConfig | KeyRecord, tenants: Mapping[str, TenantConfig]
) -> tuple[Account, ...]:
    """One account for each budget: the key's and its tenant's."""
    tenant = tenants.get(key.tenant)
    accounts = []
    if key.budget_usd is not None:
        accounts.append(Account(f"key:{key_id}", nanousd(min(key.budget_usd, MOST_USD)), key.budget_period))  # type: ignore[arg-type]
    if tenant is not None and tenant.budget_usd is not None:
        accounts.append(Account(f"tenant:{tenant.name}", nanousd(tenant.budget_usd), tenant.budget_period))
    return tuple(accounts)
