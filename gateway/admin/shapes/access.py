"""Who may do what: sessions, users, keys, tenants and their budgets and limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from gateway.admin.shapes.common import Name, Role, Usd, Wanted
from gateway.keys import GRACE_S, LONGEST_GRACE_S

Period = Literal["day", "week", "month", "total"]
Source = Literal["file", "here", "file, changed here", "seen"]
Count = Annotated[int, Field(ge=1, le=10**12)]
Password = Annotated[str, Field(min_length=12, max_length=200)]


class SignIn(Wanted):
    """The master key alone, or a user and the password."""

    master_key: str = ""
    user: str = ""
    password: str = ""


class Session(BaseModel):
    """Who is signed in. `csrf` goes into the header x-csrf-token (or the form field csrf_token) of every change."""

    user: str
    role: Role
    csrf: str
    expires_s: float | None
    how: Literal["cookie", "bearer", "this machine"]


class User(BaseModel):
    """Somebody who may sign in."""

    name: str
    role: Role
    created_s: float
    disabled: bool
    last_seen_s: float | None
    version: int


class NewUser(Wanted):
    """The password is kept as a salted scrypt hash only."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,100}$")]
    role: Role
    password: Password


class UserChange(Wanted):
    """What is left out stays. A new password or a disabled user ends that user's sessions."""

    role: Role | None = None
    password: Password | None = None
    disabled: bool | None = None
    version: int


class Spent(BaseModel):
    """Of a running period; a budget of None is unlimited."""

    period: Period
    since_s: float
    spent_usd: float
    budget_usd: float | None
    used_share: float | None


class KeyRow(BaseModel):
    """A virtual key without its secret."""

    id: str
    name: str
    prefix: str
    tenant: str
    source: Literal["file", "here"]
    models: list[str]
    rpm: int | None
    tpm: int | None
    knobs: bool
    explore: bool
    created_s: float | None
    expires_s: float | None
    revoked_s: float | None
    earlier_until_s: float | None
    """Until when a secret of before its last rotation may be used; None: it was never rotated."""
    spent: Spent
    version: int
    """Another one whenever something of it was changed; 0: a key of the file."""


class KeyLimits(Wanted):
    """What a key may do."""

    models: list[Name] | None = None
    rpm: Count | None = None
    tpm: Count | None = None
    budget_usd: Usd | None = None
    budget_period: Period = "month"
    knobs: bool = True
    explore: bool = True
    expires_s: Annotated[float, Field(allow_inf_nan=False)] | None = None


class KeyChange(KeyLimits):
    """What may be changed of a key; what is left out stays."""

    version: int = 0
    """Of the key as it was read (`KeyRow`): another one now is a conflict (409). 0: whatever it has become."""


class NewKey(KeyLimits):
    """A key to make."""

    name: Name
    tenant: Name = "default"


class Key(BaseModel):
    """A key without its secret."""

    id: str
    name: str
    prefix: str
    tenant: str
    models: list[str]
    rpm: int | None
    tpm: int | None
    budget_usd: float | None
    budget_period: str
    knobs: bool
    explore: bool
    created_s: float
    expires_s: float | None
    revoked_s: float | None
    earlier_until_s: float | None


class KeyRotation(Wanted):
    """A new secret for a key."""

    grace_s: Annotated[float, Field(ge=0, le=LONGEST_GRACE_S)] = GRACE_S
    """So long the earlier ones go on; 0: they end now."""


class MadeKey(BaseModel):
    """`key` is shown this once and kept nowhere."""

    key: str
    record: Key


class Tenant(BaseModel):
    """A tenant: stated in the file, made here, or only seen in traffic."""

    name: str
    source: Source
    keys: int
    spent: Spent
    month_usd: float
    month_requests: int
    setting_version: int


class TenantWanted(Wanted):
    """Its budget over all of its keys."""

    budget_usd: Usd | None = None
    budget_period: Period = "month"
    version: int


class RouteLimit(BaseModel):
    """A route's limits; changed on the route's page."""

    route: str
    rpm: int | None
    tpm: int | None
    spent: Spent
