"""Sessions, users, keys and tenants, with their budgets and limits."""

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
    """Credentials: either the master key, or a user's name and password."""

    master_key: str = ""
    user: str = ""
    password: str = ""


class Session(BaseModel):
    """Who is signed in. Send `csrf` in the header x-csrf-token (or the form field csrf_token) with every change."""

    user: str
    role: Role
    csrf: str
    expires_s: float | None
    how: Literal["cookie", "bearer", "this machine"]


class User(BaseModel):
    """A user of the admin API and the dashboard."""

    name: str
    role: Role
    created_s: float
    disabled: bool
    last_seen_s: float | None
    version: int


class NewUser(Wanted):
    """A user to add. Of the password only a salted scrypt hash is stored."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,100}$")]
    role: Role
    password: Password


class UserChange(Wanted):
    """Changes to a user; fields left out stay as they are. A new password, or disabling, ends the user's sessions."""

    role: Role | None = None
    password: Password | None = None
    disabled: bool | None = None
    version: int


class Spent(BaseModel):
    """Spend in the running period; a budget of None is unlimited."""

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
    """When the secrets from before the last rotation expire; None where the key was never rotated."""
    spent: Spent
    version: int
    """Changes with every change to the key; 0 for a key of the configuration file."""


class KeyLimits(Wanted):
    """Permissions and limits of a key. A limit of None is unlimited; no models means all."""

    models: list[Name] | None = None
    rpm: Count | None = None
    tpm: Count | None = None
    budget_usd: Usd | None = None
    budget_period: Period = "month"
    knobs: bool = True
    explore: bool = True
    expires_s: Annotated[float, Field(allow_inf_nan=False)] | None = None


class KeyChange(KeyLimits):
    """Changes to a key; fields left out stay as they are."""

    version: int = 0
    """`version` of the key as it was read (see `KeyRow`); 409 if it has changed since. 0 skips the check."""


class NewKey(KeyLimits):
    """A key to create."""

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
    """How to rotate a key's secret."""

    grace_s: Annotated[float, Field(ge=0, le=LONGEST_GRACE_S)] = GRACE_S
    """How long the earlier secrets stay valid, in seconds; 0: they end now."""


class MadeKey(BaseModel):
    """A new secret: `key` is in this response only, and can't be read again."""

    key: str
    record: Key


class Tenant(BaseModel):
    """A tenant: from the configuration file, added through this API, or only seen in traffic."""

    name: str
    source: Source
    keys: int
    spent: Spent
    month_usd: float
    month_requests: int
    setting_version: int


class TenantWanted(Wanted):
    """The budget of a tenant over all of its keys."""

    budget_usd: Usd | None = None
    budget_period: Period = "month"
    version: int


class RouteLimit(BaseModel):
    """Limits of a route and its spend today."""

    route: str
    rpm: int | None
    tpm: int | None
    spent: Spent
