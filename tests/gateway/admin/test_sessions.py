from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from gateway.admin import sessions as module
from gateway.admin import users
from gateway.admin.actor import Actor
from gateway.admin.services import AdminServices
from gateway.admin.sessions import COOKIE, DEVICE, FREE_TRIES
from gateway.admin.shapes.access import NewUser, UserChange
from gateway.admin.users import hashed, password_matches
from gateway.journal.rollup_tables import sessions
from gateway.journal.rollup_tables import users as user_table
from tests.gateway.admin.conftest import client_of, services_at
from tests.until import PATIENCE_S

MASTER = "a-long-master-key"
PASSWORD = "correct horse battery"
ADMIN = Actor("master", "admin")


@pytest.fixture
def guarded(migrated: Path, tmp_path: Path) -> AdminServices:
    """Admin services with a master key and one user of each role."""
    admin = services_at(migrated, tmp_path, MASTER)
    rows = [
        {"name": role, "role": role, "password": once_hashed(), "created_s": 1.0, "disabled": False, "version": 1}
        for role in ("viewer", "operator", "admin")
    ]
    with admin.store.engine.begin() as connection:
        connection.execute(sa.insert(user_table), rows)
    return admin


@cache
def once_hashed() -> str:
    """The hash of PASSWORD, made once because hashing is slow on purpose."""
    return hashed(PASSWORD)


@pytest.fixture
async def browser(guarded: AdminServices) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(guarded) as client:
        yield client


async def signed_in(client: httpx.AsyncClient, user: str) -> dict[str, str]:
    answer = await client.post("/admin/session", json={"user": user, "password": PASSWORD})
    assert answer.status_code == 201, answer.text
    return {"x-csrf-token": answer.json()["csrf"]}


async def test_the_master_key_opens_a_session_with_a_protected_cookie(
    browser: httpx.AsyncClient,
) -> None:
    """The cookie is HttpOnly, SameSite=Strict and of limited life; the session may do what the key may."""
    answer = await browser.post("/admin/session", json={"master_key": MASTER})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Max-Age=43200" in cookie
    assert (answer.json()["user"], answer.json()["role"]) == ("master", "admin")
    assert (await browser.get("/admin/users")).status_code == 200
    assert MASTER not in answer.text + cookie


async def test_the_cookie_is_secure_over_tls_and_never_sent_in_the_clear(guarded: AdminServices) -> None:
    """Over https it is Secure; http from another machine is refused with a hint."""
    async with client_of(guarded, "https://gateway.example") as client:
        answer = await client.post("/admin/session", json={"master_key": MASTER})
        assert "Secure" in answer.headers["set-cookie"]
    async with client_of(guarded, "http://gateway.example") as client:
        answer = await client.post("/admin/session", json={"master_key": MASTER})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insecure_transport")
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "wrong",
    [
        {"master_key": "a-long-master-kez"}, {"user": "admin", "password": "wrong"},
        {"user": "nobody", "password": "x"}, {"user": "", "password": ""}, {},
    ],
)  # fmt: skip
async def test_failed_sign_ins_have_one_message(browser: httpx.AsyncClient, wrong: dict[str, str]) -> None:
    """The error is the same for an unknown name and a wrong password."""
    answer = await browser.post("/admin/session", json=wrong)
    assert (answer.status_code, answer.json()["error"]["message"]) == (401, "the name or the secret is wrong")


async def test_failed_sign_ins_are_slowed_down(browser: httpx.AsyncClient) -> None:
    """After the free tries there is a 429 with a time to wait, for the right password too. Other users on other
    machines don't wait.
    """
    for _ in range(int(FREE_TRIES)):
        await browser.post("/admin/session", json={"user": "admin", "password": "wrong"})
    answer = await browser.post("/admin/session", json={"user": "admin", "password": PASSWORD})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1


async def test_failed_sign_ins_of_others_lock_nobody_out(
    guarded: AdminServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a proxy all have one address: a browser in which the user has signed in before, and the master key, still
    work.
    """
    monkeypatch.setattr(module, "TRY_EVERY_S", 1e6)  # on a busy machine no try is forgiven meanwhile
    async with client_of(guarded) as known, client_of(guarded) as new:
        await signed_in(known, "operator")
        await signed_in(known, "admin")  # the browser's last user
        for user in ["operator", "admin"] * int(FREE_TRIES):
            await new.post("/admin/session", json={"user": user, "password": "wrong"})
        right = {"user": "admin", "password": PASSWORD}
        assert (await new.post("/admin/session", json=right)).status_code == 429
        assert (await known.post("/admin/session", json={**right, "user": "operator"})).status_code == 429
        assert (await known.post("/admin/session", json=right)).status_code == 201
        assert (await new.post("/login", data={"password": MASTER})).status_code == 303


async def test_a_known_browser_cannot_guess_faster(
    guarded: AdminServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tries are counted, too; a made-up or changed mark doesn't count as known, nor does one from before a change
    of password.
    """
    monkeypatch.setattr(module, "TRY_EVERY_S", 1e6)  # a busy machine forgives none
    async with client_of(guarded) as known, client_of(guarded) as new:
        await signed_in(known, "admin")
        mark = known.cookies[DEVICE]
        assert PASSWORD not in mark and once_hashed() not in mark
        said = [
            await known.post("/admin/session", json={"user": "admin", "password": f"wrong {n}"})
            for n in range(int(FREE_TRIES) + 1)
        ]
        assert [one.status_code for one in said] == [401] * int(FREE_TRIES) + [429]
        await signed_in(new, "admin")  # the failed tries were another browser's
        for _ in range(int(FREE_TRIES)):
            await new.post("/admin/session", json={"user": "viewer", "password": "wrong"})
        number, _, mac = mark.partition(".")
        for made_up in (f"{number}x.{mac}", f"{number}.{'0' * 64}", ".", ""):
            sent = {"cookie": f"{DEVICE}={made_up}"}
            async with client_of(guarded) as client:
                answer = await client.post("/admin/session", json={"user": "admin", "password": PASSWORD}, headers=sent)
            assert answer.status_code == 429
        users.change_user(guarded, ADMIN, "admin", UserChange(password=PASSWORD + "!", version=1))
        answer = await new.post("/admin/session", json={"user": "admin", "password": PASSWORD + "!"})
        assert answer.status_code == 429


@pytest.mark.parametrize("how", ["signed out", "removed", "expired"])
async def test_events_end_with_the_session(
    guarded: AdminServices, monkeypatch: pytest.MonkeyPatch, browser: httpx.AsyncClient, how: str
) -> None:
    """After a sign-out, the user's removal or the session's expiry, the event stream ends."""
    monkeypatch.setattr(module, "TRUSTED_S", 0.0)
    csrf = await signed_in(browser, "viewer")
    hearing = asyncio.create_task(browser.get("/admin/live", timeout=PATIENCE_S))
    await asyncio.sleep(1.5)
    assert not hearing.done()
    if how == "signed out":
        assert (await browser.delete("/admin/session", headers=csrf)).status_code == 204
    elif how == "removed":
        users.delete_user(guarded, ADMIN, "viewer")
    else:
        with guarded.store.engine.begin() as connection:
            connection.execute(sa.update(sessions).values(expires_s=time.time()))
    assert "event: revision" in (await asyncio.wait_for(hearing, PATIENCE_S)).text


async def test_a_change_needs_the_sessions_csrf_token(browser: httpx.AsyncClient) -> None:
    """Without it, or with another session's, nothing changes. It may be in the header or in a field of the form."""
    csrf = await signed_in(browser, "operator")
    change = {"knobs": {"cost_weight": 0.9}, "version": 0}
    for headers in ({}, {"x-csrf-token": "0" * 64}, {"x-csrf-token": ""}):
        answer = await browser.put("/admin/routes/auto/knobs", json=change, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "csrf")
    assert (await browser.put("/admin/routes/auto/knobs", json=change, headers=csrf)).status_code == 200
    form = {"content-type": "application/x-www-form-urlencoded"}
    body = f"csrf_token={csrf['x-csrf-token']}"
    assert (await browser.post("/admin/routes/auto/undo?version=1", content=body, headers=form)).status_code == 200


async def test_another_sites_page_cannot_sign_in(browser: httpx.AsyncClient) -> None:
    """A foreign Origin is refused before the secret is checked."""
    answer = await browser.post(
        "/admin/session", json={"master_key": MASTER}, headers={"origin": "https://evil.example"}
    )
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "told", [{"origin": "https://evil.example"}, {"origin": "null"},
             {"origin": "http://localhost:8081", "sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}]
)  # fmt: skip
async def test_another_sites_form_changes_no_session(browser: httpx.AsyncClient, told: dict[str, str]) -> None:
    """It can neither sign in nor sign out."""
    own = {"origin": "http://localhost:8081"}
    assert (await browser.post("/login", data={"password": MASTER}, headers=told)).status_code == 403
    assert COOKIE not in browser.cookies
    assert (await browser.post("/login", data={"password": MASTER}, headers=own)).status_code == 303
    out = await browser.post("/logout", headers=told)
    assert out.status_code == 403 and COOKIE in browser.cookies
    assert (await browser.post("/logout", headers={**own, "sec-fetch-site": "same-origin"})).status_code == 303
    assert COOKIE not in browser.cookies


@pytest.mark.parametrize("path", ["/admin/session", "/admin/plans", "/batch/plans", "/login", "/keys/new"])
@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
async def test_a_body_without_a_session_is_limited(browser: httpx.AsyncClient, path: str, kind: str) -> None:
    """A client that isn't signed in may send no more than a form, also on paths that take files."""
    asked = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal asked
        for _ in range(64):
            asked += 1
            yield b"a" * (1 << 18)

    answer = await browser.post(path, content=endless(), headers={"content-type": kind})
    assert answer.status_code in (303, 401, 413) and asked < 10


async def test_a_signed_in_user_may_upload_a_long_file(browser: httpx.AsyncClient) -> None:
    csrf = await signed_in(browser, "operator")
    line = '{"custom_id": "%d", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "auto"}}'
    prompts = "\n".join(line % number for number in range(20_000))
    answer = await browser.post("/admin/plans", json={"prompts": prompts}, headers=csrf)
    assert len(prompts) > 1 << 20 and answer.status_code == 202


@pytest.mark.parametrize(
    ("role", "knob", "user"), [("viewer", 403, 403), ("operator", 200, 403), ("admin", 200, 201)]
)
async def test_each_role_includes_the_lower_ones(browser: httpx.AsyncClient, role: str, knob: int, user: int) -> None:
    """All roles read; operators also change knobs; admins also add users."""
    csrf = await signed_in(browser, role)
    assert (await browser.get("/admin/overview")).status_code == 200
    turned = await browser.put("/admin/routes/auto/knobs", json={"knobs": {}, "version": 0}, headers=csrf)
    made = await browser.post(
        "/admin/users", json={"name": "new", "role": "viewer", "password": PASSWORD}, headers=csrf
    )
    assert (turned.status_code, made.status_code) == (knob, user)


async def test_a_session_ends_for_every_reason(
    guarded: AdminServices, browser: httpx.AsyncClient
) -> None:
    """Whether by sign-out, time, the user's removal or a new password, the next request gets 401."""
    csrf = await signed_in(browser, "viewer")
    assert (await browser.delete("/admin/session", headers=csrf)).status_code == 204
    assert (await browser.get("/admin/overview")).status_code == 401

    await signed_in(browser, "viewer")
    users.change_user(guarded, ADMIN, "viewer", UserChange(password="another long password", version=1))
    assert (await browser.get("/admin/overview")).status_code == 401

    await signed_in(browser, "operator")
    users.change_user(guarded, ADMIN, "operator", UserChange(disabled=True, version=1))
    assert (await browser.get("/admin/overview")).status_code == 401

    await signed_in(browser, "admin")
    with guarded.store.engine.begin() as connection:
        connection.execute(sa.update(sessions).values(expires_s=time.time() - 1))
    guarded.login_guard.seen.clear()
    assert (await browser.get("/admin/overview")).status_code == 401


async def test_the_token_is_stored_nowhere(guarded: AdminServices, browser: httpx.AsyncClient) -> None:
    """The database has only the token's hash, and passwords as salted scrypt hashes."""
    await signed_in(browser, "admin")
    token = browser.cookies[COOKIE]
    data = Path(str(guarded.config.storage.url).removeprefix("sqlite:///")).read_bytes()
    assert token.encode() not in data and PASSWORD.encode() not in data
    assert hashed(PASSWORD) != hashed(PASSWORD)
    assert password_matches(PASSWORD, hashed(PASSWORD)) and not password_matches(PASSWORD, "")


async def test_a_master_session_ends_when_the_master_key_changes(
    migrated: Path, tmp_path: Path, guarded: AdminServices, browser: httpx.AsyncClient
) -> None:
    """A session of one master key is invalid under another one."""
    await browser.post("/admin/session", json={"master_key": MASTER})
    guarded.config = type(guarded.config)(
        **{name: getattr(guarded.config, name) for name in ("server", "storage", "providers", "models", "routes")},
        auth=type(guarded.config.auth)(master_key=type(guarded.config.auth.master_key)("another-key")),
    )
    guarded.login_guard.seen.clear()
    assert (await browser.get("/admin/overview")).status_code == 401


async def test_once_there_is_a_user_this_machine_alone_is_not_enough(admin: AdminServices) -> None:
    """An open gateway stops being open with its first user."""
    async with client_of(admin) as client:
        assert (await client.get("/admin/session")).json()["how"] == "this machine"
        users.add_user(admin, ADMIN, NewUser(name="ann", role="admin", password=PASSWORD))
        assert (await client.get("/admin/session")).status_code == 401


async def test_without_a_master_key_nobody_is_locked_out(admin: AdminServices) -> None:
    """The first user is an admin, and the last admin stays one. The only user may be removed, which opens the gateway
    again.
    """
    async with client_of(admin) as client:
        viewer = {"name": "vera", "role": "viewer", "password": PASSWORD}
        answer = await client.post("/admin/users", json=viewer)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "last_admin")
        assert (await client.get("/admin/users")).json() == []
        await client.post("/admin/users", json={**viewer, "name": "ann", "role": "admin"})
        csrf = await signed_in(client, "ann")
        assert (await client.post("/admin/users", json=viewer, headers=csrf)).status_code == 201
        for change in ({"role": "viewer"}, {"disabled": True}):
            answer = await client.patch("/admin/users/ann", json={**change, "version": 1}, headers=csrf)
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "last_admin")
        assert (await client.delete("/admin/users/ann", headers=csrf)).status_code == 409
        assert (await client.delete("/admin/users/vera", headers=csrf)).status_code == 204
        assert (await client.delete("/admin/users/ann", headers=csrf)).status_code == 204
        assert (await client.get("/admin/session")).json()["how"] == "this machine"


async def test_two_admins_who_change_one_user_at_once_do_not_overwrite_each_other(
    guarded: AdminServices, browser: httpx.AsyncClient
) -> None:
    """The second of two changes to the same version gets a conflict."""
    csrf = await signed_in(browser, "admin")
    first, second = [
        await browser.patch("/admin/users/viewer", json={"role": role, "version": 1}, headers=csrf)
        for role in ("operator", "admin")
    ]
    assert (first.status_code, second.status_code) == (200, 409)
    assert users.find_user(guarded.store, "viewer").role == "operator"  # type: ignore[union-attr]


async def test_a_session_works_while_the_database_is_away(guarded: AdminServices, browser: httpx.AsyncClient) -> None:
    """Pages still report the fault; a session that wasn't used recently gets an error about the database."""
    await signed_in(browser, "viewer")
    assert (await browser.get("/admin/session")).status_code == 200
    guarded.store.engine.dispose()
    file = Path(str(guarded.config.storage.url).removeprefix("sqlite:///"))
    file.rename(file.with_suffix(".gone"))
    file.mkdir()
    guarded.login_guard.seen = {key: (found, at - 60) for key, (found, at) in guarded.login_guard.seen.items()}
    assert (await browser.get("/admin/session")).json()["user"] == "viewer"
    assert (await browser.get("/admin/overview")).json()["error"]["code"] == "journal_unavailable"
