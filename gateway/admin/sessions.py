"""Signing in and out. A session is a random token in a cookie; the database stores its hash, its user and its expiry.

A wrong name and a wrong password get the same error after the same amount of work. Failed attempts are rate-limited per
address and per name. So that nobody can lock out others, attempts from a browser in which the user has signed in before
count for that browser alone (OWASP's device cookies), and the right master key is never rate-limited. While the
database can't be reached, sessions that were looked up before go on.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import sqlalchemy as sa
from fastapi import Request, Response

from gateway.admin.services import AdminServices
from gateway.admin.shapes.access import Session, SignIn
from gateway.admin.shapes.common import Role
from gateway.admin.users import UserRow, find_user, password_matches, user_count
from gateway.errors import PolicyError, RateLimited, Unauthorized
from gateway.journal.rollup_tables import sessions, users
from gateway.loopback import names_loopback

log = logging.getLogger("headgate.admin")

COOKIE = "hg_session"
DEVICE = "hg_device"
SESSION_S = 12 * 3600.0
DEVICE_S = 180 * 86400.0
TRUSTED_S = 5.0
"""How long a session that was looked up is trusted without another look-up."""
MASTER = "master"
FREE_TRIES = 5.0
TRY_EVERY_S = 12.0
"""Seconds per further attempt, once the free ones are used up."""
_MAX_NAMES = 10_000


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session that has not been revoked; `expires_s` may have passed."""

    user: str
    role: Role
    expires_s: float


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A new session, and the cookies for its browser."""

    token: str = field(repr=False)
    session: Session
    device: str = field(repr=False)
    """Device cookie: proves later that the user has signed in from this browser. Empty for the master key."""


@dataclass(slots=True)
class LoginGuard:
    """Limits failed sign-ins by address, name or device, and caches sessions. One per control process."""

    failures: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By address, name or device: the number of failures, which decays, and when it was updated (monotonic seconds)."""
    seen: dict[str, tuple[StoredSession, float]] = field(default_factory=dict)
    """By the token's hash: the session, and when it was looked up (monotonic seconds)."""
    users: tuple[int, float] | None = None
    """Number of users, and when they were counted (monotonic seconds); None before the first count."""

    def check(self, who: str, now: float) -> None:
        """Raises RateLimited where too many attempts failed."""
        count = self._count(who, now)
        if count > FREE_TRIES - 1:  # failures decay, so five failures of a moment ago count a little less than five
            wait_s = (count - FREE_TRIES + 1) * TRY_EVERY_S
            raise RateLimited(f"too many failed tries; wait {wait_s:.0f} s", retry_after_s=wait_s)

    def failed(self, who: str, now: float) -> None:
        """Count one more failed attempt."""
        if len(self.failures) >= _MAX_NAMES:
            self.failures = {name: one for name, one in self.failures.items() if self._count(name, now) > 0}
        self.failures[who] = (self._count(who, now) + 1, now)

    def _count(self, who: str, now: float) -> float:
        count, since = self.failures.get(who, (0.0, now))
        return max(0.0, count - (now - since) / TRY_EVERY_S)


def is_open(services: AdminServices) -> bool:
    """Whether there is neither a master key nor a user, so that anybody on this machine may do everything."""
    if services.config.auth.master_key:
        return False
    login_guard: LoginGuard = services.login_guard
    if login_guard.users is None or time.monotonic() - login_guard.users[1] > TRUSTED_S:
        try:
            login_guard.users = (user_count(services.store), time.monotonic())
        except sa.exc.SQLAlchemyError:
            if login_guard.users is None:
                raise
    return login_guard.users[0] == 0


def sign_in(services: AdminServices, wanted: SignIn, request: Request) -> SignedIn:
    """Start a session. Raises Unauthorized, with the same message whatever was wrong, or RateLimited."""
    peer = request.client.host if request.client else ""
    role: Role = "admin"
    name, device = _master_name(services), ""
    if not _is_master_key(services, wanted.master_key):
        user = _authenticate(services, wanted, peer, request.cookies.get(DEVICE, ""))
        name, role, device = user.name, user.role, _device_cookie(user, secrets.token_urlsafe(16))
    token = secrets.token_urlsafe(32)
    expires_s = time.time() + SESSION_S
    row = {"id": _hash(token), "user_name": name, "role": role, "created_s": time.time(), "expires_s": expires_s}
    with services.store.engine.begin() as connection:
        connection.execute(sa.delete(sessions).where(sessions.c.expires_s < time.time()))
        connection.execute(sa.insert(sessions), row)
        connection.execute(sa.update(users).where(users.c.name == name).values(last_seen_s=time.time()))
    services.store.note(_display_name(name), "session.begin", _display_name(name), {"from": peer})
    session = Session(user=_display_name(name), role=role, csrf=csrf_of(token), expires_s=expires_s, how="cookie")
    return SignedIn(token, session, device)


def sign_out(services: AdminServices, request: Request) -> None:
    """Ends the session of this request, if it has one."""
    token = request.cookies.get(COOKIE, "")
    if token:
        services.login_guard.seen.pop(_hash(token), None)
        with services.store.engine.begin() as connection:
            connection.execute(sa.delete(sessions).where(sessions.c.id == _hash(token)))


def set_cookies(response: Response, request: Request, signed: SignedIn) -> None:
    """Set the session's cookies: for this site only, hidden from scripts, and over TLS unless the host is loopback.

    Raises PolicyError where the cookies would cross a network unencrypted.
    """
    tls = request.url.scheme == "https"
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if not tls and not names_loopback(host):
        raise PolicyError(
            "passwords and sessions need https: put a TLS proxy in front, or open this page as localhost",
            code="insecure_transport", status=403,
        )  # fmt: skip
    for name, value, max_age_s in ((COOKIE, signed.token, SESSION_S), (DEVICE, signed.device, DEVICE_S)):
        if value:
            response.set_cookie(
                name, value, max_age=round(max_age_s), path="/", secure=tls, httponly=True, samesite="strict"
            )


def clear_cookie(response: Response) -> None:
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")


def session_of(services: AdminServices, token: str) -> StoredSession | None:
    """The session that a token belongs to; None where there is none, or it has expired."""
    key, now = _hash(token), time.monotonic()
    known = services.login_guard.seen.get(key)
    if known is not None and now - known[1] < TRUSTED_S:
        return _unless_expired(known[0])
    try:
        found = _look_up(services, key)
    except sa.exc.SQLAlchemyError:
        if known is None:
            raise
        return _unless_expired(known[0])
    if found is None:
        services.login_guard.seen.pop(key, None)
        return None
    if len(services.login_guard.seen) >= _MAX_NAMES:
        services.login_guard.seen.clear()
    services.login_guard.seen[key] = (found, now)
    return _unless_expired(found)


def csrf_of(token: str) -> str:
    """A session's CSRF token, derived from the session's token, so that it needs no storage."""
    return hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()


def _look_up(services: AdminServices, key: str) -> StoredSession | None:
    query = (
        sa.select(sessions.c.user_name, sessions.c.role, sessions.c.expires_s, users.c.role.label("now"),
                  users.c.disabled)
        .join_from(sessions, users, users.c.name == sessions.c.user_name, isouter=True)
        .where(sessions.c.id == key)
    )  # fmt: skip
    with services.store.engine.connect() as connection:
        row = connection.execute(query).first()
    if row is None:
        return None
    if row.user_name == _master_name(services):
        return StoredSession(MASTER, "admin", row.expires_s)
    if row.now is None or row.disabled:
        return None
    return StoredSession(row.user_name, row.now, row.expires_s)


def _unless_expired(found: StoredSession) -> StoredSession | None:
    return found if time.time() < found.expires_s else None


def _is_master_key(services: AdminServices, sent: str) -> bool:
    master_key = services.config.auth.master_key
    return bool(master_key) and hmac.compare_digest(sent.encode(), master_key.encode())


def _authenticate(services: AdminServices, wanted: SignIn, peer: str, device: str) -> UserRow:
    now, user = time.monotonic(), find_user(services.store, wanted.user)
    names = [f"address {peer}", f"user {wanted.user or MASTER}"]
    if user is not None and _is_device_of(user, device):
        names = [f"device {_hash(device)}"]
    for name in names:
        services.login_guard.check(name, now)
    right = not wanted.master_key and password_matches(wanted.password, user.password if user is not None else "")
    if user is None or not right or user.disabled:
        for name in names:
            services.login_guard.failed(name, now)
        log.warning("a sign-in from %s failed", peer)  # not the name: people type passwords there
        raise Unauthorized("the name or the secret is wrong")
    return user


def _is_device_of(user: UserRow, cookie: str) -> bool:
    return hmac.compare_digest(cookie.encode(), _device_cookie(user, cookie.partition(".")[0]).encode())


def _device_cookie(user: UserRow, number: str) -> str:
    """A device cookie for a user: signed with the stored password hash, so that a new password makes it invalid."""
    message = f"device {user.name} {number}".encode()
    return f"{number}.{hmac.new(user.password.encode(), message, hashlib.sha256).hexdigest()}"


def _master_name(services: AdminServices) -> str:
    """User name of the master key's sessions: it holds the key's hash, so that a new key ends them. No user can have
    this name. Empty without a master key.
    """
    return f"master key {_hash(services.config.auth.master_key)[:16]}" if services.config.auth.master_key else ""


def _display_name(name: str) -> str:
    return MASTER if name.startswith("master key ") else name


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
