"""Signing in and out. A session is a random token in a cookie; the database keeps its hash, its user and its end.

Wrong names and wrong passwords are refused in the same words after the same work. Failures slow down further tries,
per address and per name. So that nobody locks others out, tries of a browser in which the user has signed in before
count for that browser alone (OWASP's device cookies), and the right master key never waits, as no bearer token does.
While the database is away sessions that were seen lately go on.
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
from gateway.keys import is_loopback

log = logging.getLogger("headgate.admin")

COOKIE = "hg_session"
DEVICE = "hg_device"
LIVES_S = 12 * 3600.0
DEVICE_LIVES_S = 180 * 86400.0
TRUSTED_S = 5.0
"""A session that was looked up this lately is not looked up again."""
MASTER = "master"
FREE_TRIES = 5.0
TRY_EVERY_S = 12.0
"""After the free tries, one more each so often."""
_MAX_NAMES = 10_000


@dataclass(frozen=True, slots=True)
class Found:
    """A session in force."""

    user: str
    role: Role
    expires_s: float


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A session that has begun, and what its browser is to keep."""

    token: str = field(repr=False)
    session: Session
    device: str = field(repr=False)
    """That the user has signed in here; empty for the master key, which is never refused."""


@dataclass(slots=True)
class LoginGuard:
    """Remembers failed tries by address and by name, and sessions seen lately. One per control process."""

    failures: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By who: how many, fading, and when that was (monotonic)."""
    seen: dict[str, tuple[Found, float]] = field(default_factory=dict)
    """By the token's hash: the session, and when it was looked up (monotonic)."""
    users: tuple[int, float] | None = None
    """How many users there are, and when that was asked."""

    def check(self, who: str, now: float) -> None:
        """Raises RateLimited where too many tries failed."""
        count = self._count(who, now)
        if count > FREE_TRIES - 1:  # failures fade, so five of a moment ago are a little less than five
            wait_s = (count - FREE_TRIES + 1) * TRY_EVERY_S
            raise RateLimited(f"too many failed tries; wait {wait_s:.0f} s", retry_after_s=wait_s)

    def failed(self, who: str, now: float) -> None:
        """One more."""
        if len(self.failures) >= _MAX_NAMES:
            self.failures = {name: one for name, one in self.failures.items() if self._count(name, now) > 0}
        self.failures[who] = (self._count(who, now) + 1, now)

    def _count(self, who: str, now: float) -> float:
        count, since = self.failures.get(who, (0.0, now))
        return max(0.0, count - (now - since) / TRY_EVERY_S)


def is_open(services: AdminServices) -> bool:
    """Neither a master key nor a user: whoever is on this machine may do all."""
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
    """Raises Unauthorized, in the same words whatever was wrong, or RateLimited."""
    peer = request.client.host if request.client else ""
    role: Role = "admin"
    name, device = _master_name(services), ""
    if not _is_master_key(services, wanted.master_key):
        user = _with_password(services, wanted, peer, request.cookies.get(DEVICE, ""))
        name, role, device = user.name, user.role, _device_of(user, secrets.token_urlsafe(16))
    token = secrets.token_urlsafe(32)
    expires_s = time.time() + LIVES_S
    row = {"id": _hash(token), "user_name": name, "role": role, "created_s": time.time(), "expires_s": expires_s}
    with services.store.engine.begin() as connection:
        connection.execute(sa.delete(sessions).where(sessions.c.expires_s < time.time()))
        connection.execute(sa.insert(sessions), row)
        connection.execute(sa.update(users).where(users.c.name == name).values(last_seen_s=time.time()))
    services.store.note(_shown(name), "session.begin", _shown(name), {"from": peer})
    session = Session(user=_shown(name), role=role, csrf=csrf_of(token), expires_s=expires_s, how="cookie")
    return SignedIn(token, session, device)


def sign_out(services: AdminServices, request: Request) -> None:
    """Ends the session of this request, if it has one."""
    token = request.cookies.get(COOKIE, "")
    if token:
        services.login_guard.seen.pop(_hash(token), None)
        with services.store.engine.begin() as connection:
            connection.execute(sa.delete(sessions).where(sessions.c.id == _hash(token)))


def set_cookies(response: Response, request: Request, signed: SignedIn) -> None:
    """Only sent back to this site, never readable by scripts, and over TLS only, unless all of it is on this machine.

    Raises PolicyError where it would cross a network in the clear.
    """
    tls = request.url.scheme == "https"
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if not tls and not (host == "localhost" or is_loopback(host)):
        raise PolicyError(
            "passwords and sessions need https: put a TLS proxy in front, or open this page as localhost",
            code="insecure_transport", status=403,
        )  # fmt: skip
    for name, value, lives_s in ((COOKIE, signed.token, LIVES_S), (DEVICE, signed.device, DEVICE_LIVES_S)):
        if value:
            response.set_cookie(
                name, value, max_age=round(lives_s), path="/", secure=tls, httponly=True, samesite="strict"
            )


def clear_cookie(response: Response) -> None:
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")


def session_of(services: AdminServices, token: str) -> Found | None:
    """The session that a token belongs to; None: none, or it has ended."""
    key, now = _hash(token), time.monotonic()
    known = services.login_guard.seen.get(key)
    if known is not None and now - known[1] < TRUSTED_S:
        return _living(known[0])
    try:
        found = _look_up(services, key)
    except sa.exc.SQLAlchemyError:
        if known is None:
            raise
        return _living(known[0])
    if found is None:
        services.login_guard.seen.pop(key, None)
        return None
    if len(services.login_guard.seen) >= _MAX_NAMES:
        services.login_guard.seen.clear()
    services.login_guard.seen[key] = (found, now)
    return _living(found)


def csrf_of(token: str) -> str:
    """A session's CSRF token: known to whoever holds the session, of no use without it."""
    return hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()


def _look_up(services: AdminServices, key: str) -> Found | None:
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
        return Found(MASTER, "admin", row.expires_s)
    if row.now is None or row.disabled:
        return None
    return Found(row.user_name, row.now, row.expires_s)


def _living(found: Found) -> Found | None:
    return found if time.time() < found.expires_s else None


def _is_master_key(services: AdminServices, sent: str) -> bool:
    master_key = services.config.auth.master_key
    return bool(master_key) and hmac.compare_digest(sent.encode(), master_key.encode())


def _with_password(services: AdminServices, wanted: SignIn, peer: str, device: str) -> UserRow:
    now, user = time.monotonic(), find_user(services.store, wanted.user)
    names = [f"address {peer}", f"user {wanted.user or MASTER}"]
    if user is not None and hmac.compare_digest(device.encode(), _device_of(user, device.partition(".")[0]).encode()):
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


def _device_of(user: UserRow, number: str) -> str:
    """Nobody can make one up who doesn't know what is stored of the password; with another password it is void."""
    told = f"device {user.name} {number}".encode()
    return f"{number}.{hmac.new(user.password.encode(), told, hashlib.sha256).hexdigest()}"


def _master_name(services: AdminServices) -> str:
    """Of the master key's sessions: another key ends them. No user can have this name."""
    return f"master key {_hash(services.config.auth.master_key)[:16]}" if services.config.auth.master_key else ""


def _shown(name: str) -> str:
    return MASTER if name.startswith("master key ") else name


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
