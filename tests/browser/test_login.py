"""Signing in: errors are shown in place, and each role sees and does what it may."""

from __future__ import annotations

import httpx
import sqlalchemy as sa
from playwright.sync_api import Page

from gateway.journal.rollup_tables import sessions
from gateway.journal.store import open_store
from tests.browser.conftest import OpenPage
from tests.browser.stage import Stage, eventually


def test_the_login_page_leads_back_to_the_requested_page(stage: Stage, open_page: OpenPage) -> None:
    page = open_page("/")
    page.context.clear_cookies()
    page.goto(f"{stage.url}/routes/auto")
    assert "/login?next=/routes/auto" in page.url
    page.get_by_label("Password or master key").fill("hg-master-for-the-browser")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{stage.url}/routes/auto")


def test_a_wrong_secret_is_refused_in_place(stage: Stage, open_page: OpenPage) -> None:
    """The message is the same for a wrong name and a wrong password, and the name stays in its field."""
    page = open_page("/")
    page.context.clear_cookies()
    said = [refused(page, stage, user, "not the password") for user in ("otto", "nobody")]
    assert said[0] == said[1] and "wrong" in said[0]
    assert page.get_by_label("User").input_value() == "nobody"


def refused(page: Page, stage: Stage, user: str, secret: str) -> str:
    page.goto(f"{stage.url}/login")
    page.get_by_label("User").fill(user)
    page.get_by_label("Password or master key").fill(secret)
    page.get_by_role("button", name="Sign in").click()
    return page.locator("main .notice").inner_text()


def test_a_form_after_the_session_leads_to_the_login(stage: Stage, open_page: OpenPage) -> None:
    """Nothing is changed."""
    page = open_page("/routes/auto", user="otto")
    before = stage.admin("GET", "/admin/routes/auto")["setting_version"]
    page.context.clear_cookies()
    page.get_by_role("button", name="Apply").click()
    page.wait_for_url("**/login?next=**")
    assert stage.admin("GET", "/admin/routes/auto")["setting_version"] == before


def test_an_expired_session_is_explained(stage: Stage, open_page: OpenPage) -> None:
    """Twelve hours later, by the database's time, the next form leads to the login page, which says why."""
    page = open_page("/routes/auto", user="otto")
    before = stage.admin("GET", "/admin/routes/auto")["setting_version"]
    store = open_store(f"sqlite:///{stage.folder}/journal.db")
    with store.engine.begin() as connection:
        connection.execute(sa.update(sessions).where(sessions.c.user_name == "otto").values(expires_s=1.0))
    store.close()
    cookies = {cookie["name"]: cookie["value"] for cookie in page.context.cookies()}
    eventually(lambda: httpx.get(f"{stage.url}/routes", cookies=cookies).status_code == 303)
    page.get_by_role("button", name="Apply", exact=True).click()
    page.wait_for_url("**/login?next=**")
    assert "your session has expired" in page.locator("main").inner_text()
    assert stage.admin("GET", "/admin/routes/auto")["setting_version"] == before


def test_a_viewer_changes_nothing(stage: Stage, open_page: OpenPage) -> None:
    """There are no buttons for what a viewer may not do, a request is refused, and users aren't shown."""
    page = open_page("/routes/auto", user="vera")
    assert page.get_by_role("button", name="Apply").count() == 0
    before = stage.admin("GET", "/admin/routes/auto")["setting_version"]
    token = page.locator("[name=csrf_token]").first.input_value()
    answer = page.request.post(
        f"{stage.url}/routes/auto/apply", form={"cost_weight": "0.9", "version": str(before), "csrf_token": token}
    )
    assert answer.status == 403 and "needs the role operator" in answer.text()
    assert stage.admin("GET", "/admin/routes/auto")["setting_version"] == before
    page.goto(f"{stage.url}/users")
    assert "needs the role admin" in page.locator("main .notice").inner_text()


def test_a_change_without_its_token_is_refused(stage: Stage, open_page: OpenPage) -> None:
    """The cookie alone, which another site's page could make the browser send, changes nothing."""
    page = open_page("/routes/auto", user="otto")
    answer = page.request.post(f"{stage.url}/routes/auto/apply", form={"cost_weight": "0.9", "version": "0"})
    assert answer.status == 403 and "out of date" in answer.text()


def test_pages_run_no_foreign_script(stage: Stage) -> None:
    """The policy allows only the gateway's own files and nothing inline; no page can be framed, and scripts can't read
    cookies.
    """
    answer = httpx.post(f"{stage.url}/login", data={"password": "hg-master-for-the-browser"})
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    policy = httpx.get(f"{stage.url}/login").headers["content-security-policy"]
    assert "script-src 'self';" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert httpx.get(f"{stage.url}/login", params={"next": "https://elsewhere.example/"}).text.count("elsewhere") == 0


def test_signing_out_ends_the_session(stage: Stage, open_page: OpenPage) -> None:
    """The earlier cookie is invalid."""
    page = open_page("/", user="vera")
    cookies = {cookie["name"]: cookie["value"] for cookie in page.context.cookies()}
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{stage.url}/login")
    assert httpx.get(f"{stage.url}/routes", cookies=cookies).status_code == 303
