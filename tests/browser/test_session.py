"""A session that ends while a page is open: what was typed isn't lost, and nobody else sees it."""

from __future__ import annotations

import httpx
import sqlalchemy as sa
from playwright.sync_api import Page, expect

from gateway.journal.rollup_tables import sessions
from gateway.journal.store import open_store
from tests.browser.conftest import OpenPage
from tests.browser.stage import PASSWORD, Stage, eventually

BACK = "What you had filled in is back"


def end_session(stage: Stage, page: Page, user: str) -> None:
    """End a session as after its twelve hours, once the control process has noticed."""
    store = open_store(f"sqlite:///{stage.folder}/journal.db")
    with store.engine.begin() as connection:
        connection.execute(sa.update(sessions).where(sessions.c.user_name == user).values(expires_s=1.0))
    store.close()
    cookies = {cookie["name"]: cookie["value"] for cookie in page.context.cookies()}
    eventually(lambda: httpx.get(f"{stage.url}/routes", cookies=cookies).status_code == 303)


def sign_in_again(page: Page, user: str) -> None:
    page.get_by_label("User").fill(user)
    page.get_by_label("Password or master key").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()


def turn_a_knob(page: Page) -> None:
    page.locator("#cost_weight").fill("0.7")
    page.get_by_text("More knobs").click()
    page.locator("#explore").fill("0.1")
    page.get_by_label("Why").fill("cheaper")


def test_a_form_is_restored_after_signing_in(stage: Stage, open_page: OpenPage) -> None:
    """A form that was sent without a valid session isn't applied; after signing in it has its values and its prediction
    again.
    """
    page = open_page("/routes/auto", user="otto")
    before = stage.admin("GET", "/admin/routes/auto")["setting_version"]
    turn_a_knob(page)
    end_session(stage, page, "otto")
    page.locator("#knobs--apply").click()
    page.wait_for_url("**/login?next=**")
    sign_in_again(page, "otto")
    page.wait_for_url(f"{stage.url}/routes/auto")
    expect(page.locator("#said")).to_contain_text(BACK)
    values = [page.locator(f"#{name}").input_value() for name in ("cost_weight", "explore", "why")]
    assert values == ["0.7", "0.1", "cheaper"]
    assert page.locator("#explore").is_visible()
    expect(page.get_by_role("heading", name="What this turn would do")).to_be_visible()
    assert stage.admin("GET", "/admin/routes/auto")["setting_version"] == before
    page.reload()
    assert page.locator("#why").input_value() == ""


def test_another_user_does_not_see_the_form(stage: Stage, open_page: OpenPage) -> None:
    """What one user had typed is deleted when another signs in in the same tab."""
    page = open_page("/routes/auto", user="otto")
    turn_a_knob(page)
    end_session(stage, page, "otto")
    page.locator("#knobs--apply").click()
    page.wait_for_url("**/login?next=**")
    sign_in_again(page, "ada")
    page.wait_for_url(f"{stage.url}/routes/auto")
    page.wait_for_load_state()
    page.wait_for_function("sessionStorage.length === 0")
    assert page.locator("#why").input_value() == "" and BACK not in page.locator("main").inner_text()


def test_a_refreshing_page_keeps_an_unfinished_form(stage: Stage, open_page: OpenPage) -> None:
    """It says that the session has ended, and doesn't change to the login page."""
    page = open_page("/batch", user="otto")
    page.get_by_label("Budget, $").fill("12")
    end_session(stage, page, "otto")
    expect(page.locator("#problem")).to_contain_text("Your session has ended")
    assert page.url == f"{stage.url}/batch"
    page.get_by_role("link", name="Sign in again").click()
    sign_in_again(page, "otto")
    page.wait_for_url(f"{stage.url}/batch")
    expect(page.locator("#said")).to_contain_text(BACK)
    assert page.get_by_label("Budget, $").input_value() == "12"


def test_a_page_from_before_a_new_session_keeps_its_form(stage: Stage, open_page: OpenPage) -> None:
    """After signing in in another tab the old page's form is refused, and loading the page again restores its values.
    """
    page = open_page("/routes/auto", user="otto")
    page.get_by_label("Why").fill("cheaper")
    end_session(stage, page, "otto")
    other = page.context.new_page()
    other.goto(f"{stage.url}/login")
    sign_in_again(other, "otto")
    other.wait_for_url(f"{stage.url}/")
    page.locator("#knobs--apply").click()
    expect(page.locator("#knobs .problem")).to_contain_text("out of date")
    page.get_by_role("link", name="Load it again").click()
    expect(page.locator("#said")).to_contain_text(BACK)
    assert page.get_by_label("Why").input_value() == "cheaper"
