"""Users of the admin API and the dashboard. Of a password only a salted scrypt hash is stored."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from gateway.admin.actor import Actor
from gateway.admin.changes import Conflict
from gateway.admin.services import AdminServices
from gateway.admin.shapes.access import NewUser, User, UserChange
from gateway.admin.shapes.common import Role
from gateway.errors import CallerError, NotFound
from gateway.journal.rollup_tables import sessions, users
from gateway.journal.store import Store

_N, _R, _P = 1 << 14, 8, 1
_NOBODY = "scrypt$" + "A" * 22 + "==$" + "A" * 43 + "="
"""Hash to compare a password with where there is no such user, so that the work is the same."""


@dataclass(frozen=True, slots=True)
class UserRow:
    """A user as stored. `password` is its hash."""

    name: str
    role: Role
    password: str
    disabled: bool


def list_users(services: AdminServices) -> list[User]:
    """All users, by name."""
    with services.store.engine.connect() as connection:
        rows = connection.execute(sa.select(users).order_by(users.c.name)).mappings().all()
    return [_user(dict(row)) for row in rows]


def add_user(services: AdminServices, who: Actor, wanted: NewUser) -> User:
    """Add a user. Raises CallerError (409) where the name is taken, or nobody could change anything any more."""
    row = {
        "name": wanted.name, "role": wanted.role, "password": hashed(wanted.password), "created_s": time.time(),
        "disabled": False, "last_seen_s": None, "version": 1,
    }  # fmt: skip
    try:
        with services.store.engine.begin() as connection:
            connection.execute(sa.insert(users), row)
            _refuse_lock_out(services, connection)
    except sa.exc.IntegrityError:
        message = f"there is a user named {wanted.name!r}"
        raise CallerError(message, status=409, code="user_exists", param="name") from None
    services.login_guard.users = None
    services.store.note(who.name, "user.create", wanted.name, {"role": wanted.role})
    return _user(row)


def change_user(services: AdminServices, who: Actor, name: str, change: UserChange) -> User:
    """Change a user's role or password, or disable the user. The last two end the user's sessions.

    Raises NotFound, Conflict where another version is in force, or CallerError where the last admin would be lost.
    """
    values: dict[str, Any] = {"version": change.version + 1}
    if change.role is not None:
        values["role"] = change.role
    if change.disabled is not None:
        values["disabled"] = change.disabled
    if change.password is not None:
        values["password"] = hashed(change.password)
    with services.store.engine.begin() as connection:
        mine = users.c.name == name
        done = connection.execute(sa.update(users).where(mine, users.c.version == change.version).values(**values))
        row = connection.execute(sa.select(users).where(mine)).mappings().first()
        if row is None:
            raise NotFound(f"there is no user named {name!r}")
        if not done.rowcount:
            raise Conflict(f"{name} was changed meanwhile: read it again before you change it")
        _refuse_lock_out(services, connection)
        if change.password is not None or change.disabled:
            connection.execute(sa.delete(sessions).where(sessions.c.user_name == name))
    services.login_guard.seen.clear()
    changed = {field: value for field, value in values.items() if field in ("role", "disabled")}
    services.store.note(who.name, "user.change", name, {**changed, "password": change.password is not None})
    return _user(dict(row))


def delete_user(services: AdminServices, who: Actor, name: str) -> None:
    """Delete a user and the user's sessions. Raises NotFound, or CallerError where the last admin would be lost."""
    with services.store.engine.begin() as connection:
        connection.execute(sa.delete(sessions).where(sessions.c.user_name == name))
        if not connection.execute(sa.delete(users).where(users.c.name == name)).rowcount:
            raise NotFound(f"there is no user named {name!r}")
        _refuse_lock_out(services, connection)
    services.login_guard.seen.clear()
    services.login_guard.users = None
    services.store.note(who.name, "user.delete", name)


def _refuse_lock_out(services: AdminServices, connection: sa.Connection) -> None:
    """Raises CallerError where there are users, none of them is an enabled admin, and there is no master key."""
    if services.config.auth.master_key:
        return
    rows = connection.execute(sa.select(users.c.role, users.c.disabled)).all()
    if rows and not any(row.role == "admin" and not row.disabled for row in rows):
        raise CallerError(
            "without a master key at least one user must be an admin who is not disabled", status=409,
            code="last_admin", param="role",
        )  # fmt: skip


def find_user(store: Store, name: str) -> UserRow | None:
    """The user of this name, or None."""
    query = sa.select(users.c.name, users.c.role, users.c.password, users.c.disabled).where(users.c.name == name)
    with store.engine.connect() as connection:
        row = connection.execute(query).first()
    return None if row is None else UserRow(row.name, row.role, row.password, row.disabled)


def user_count(store: Store) -> int:
    """Number of users."""
    with store.engine.connect() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(users)).scalar_one())


def hashed(password: str) -> str:
    """Hash a password for storage, as `scrypt$salt$hash`."""
    salt = secrets.token_bytes(16)
    return "$".join(("scrypt", base64.b64encode(salt).decode(), base64.b64encode(_scrypt(password, salt)).decode()))


def password_matches(password: str, stored: str) -> bool:
    """Whether a password matches a stored hash; takes the same time where `stored` is empty."""
    _, salt, expected = (stored or _NOBODY).split("$")
    return hmac.compare_digest(_scrypt(password, base64.b64decode(salt)), base64.b64decode(expected)) and bool(stored)


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=_N, r=_R, p=_P, dklen=32)


def _user(row: dict[str, Any]) -> User:
    return User(**{name: row[name] for name in User.model_fields})
