"""By keyboard alone, and while figures are refreshed: the focus stays, and nothing happens that wasn't asked for."""

from __future__ import annotations

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.stage import Stage, artifact, running

FOCUS = "document.activeElement"
OTHER_FIRST = "href => document.querySelector('#live tbody a.row').getAttribute('href') !== href"
QUESTION = "What is 3 + 4? Answer with the number only."


def ask(stage: Stage, count: int) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: stage.ask(QUESTION), range(count)))


def press(page: Page, name: str) -> None:
    """Press a control by key, as a user without a mouse does."""
    page.get_by_role("button", name=name, exact=True).focus()
    page.keyboard.press("Enter")


def test_enter_in_a_field_presses_its_own_button_or_none(stage: Stage, open_page: OpenPage) -> None:
    """Enter in a knob's number field applies nothing, and in the reason's field it applies the knob. It once began a
    shadow trial from both.
    """
    before = stage.admin("GET", "/admin/routes/kept")["setting_version"]
    page = open_page("/routes/kept", user="otto")
    with page.expect_response(lambda answer: "/effect?" in answer.url):
        page.locator("#cost_weight").fill("0.4")
    page.locator("#cost_weight").press("Enter")
    page.get_by_label("Why").fill("as agreed")
    page.get_by_label("Why").press("Enter")
    expect(page.locator("#said")).to_contain_text("The knobs are in force")
    now = stage.admin("GET", "/admin/routes/kept")
    assert (now["setting_version"], now["trial"], now["knobs"]["cost_weight"]) == (before + 1, "", 0.4)


def test_enter_in_a_comment_gives_no_label(stage: Stage, open_page: OpenPage) -> None:
    """A comment that said "wrong" was once recorded as "Right", whose button comes first."""
    id = stage.ask(QUESTION).headers["x-headgate-decision-id"]
    page = open_page("/decisions", user="otto")
    page.goto(f"{stage.url}/decisions/{id}")
    page.get_by_label("Comment").fill("this is wrong")
    page.get_by_label("Comment").press("Enter")
    press(page, "Wrong")
    expect(page.locator("#said")).to_contain_text("The label is recorded")
    (said,) = stage.admin("GET", "/admin/feedback", params={"decision_id": id})["data"]
    assert (said["score"], said["comment"]) == (0.0, "this is wrong")
    assert [row["target"] for row in stage.admin("GET", "/admin/audit", params={"action": "decision.label"})].count(
        id
    ) == 1


def test_results_get_the_focus(open_page: OpenPage) -> None:
    """These are a new key that is shown only once, the result of a check, and what a certificate lacks."""
    page = open_page("/keys", user="ada")
    page.get_by_label("Name").fill("seen at once")
    page.get_by_label("Name").press("Enter")
    expect(page.locator(".notice:focus")).to_contain_text("Key seen at once is made")
    page.goto(page.url.replace("/keys", "/models"))
    press(page, "Check script")
    expect(page.locator(".notice:focus")).to_contain_text("script")
    page.goto(page.url.replace("/models", "/certificates?route=kept"))
    press(page, "Test and issue")
    expect(page.locator("[data-said]:focus")).to_contain_text("Not enough evidence")


def test_a_refusal_keeps_the_focus(open_page: OpenPage) -> None:
    """A button that is disabled while it works doesn't move the focus to the top of the page."""
    first, second = (open_page("/users", user="ada") for _ in range(2))
    first.get_by_label("Role of vera").select_option("operator")
    role = first.locator("form", has=first.get_by_label("Role of vera"))
    role.get_by_role("button").click()
    expect(first.locator("#said")).to_contain_text("vera: operator")
    stale = second.locator("form", has=second.get_by_label("Role of vera"))
    stale.get_by_role("button").focus()
    second.keyboard.press("Enter")
    expect(stale.locator(".problem")).to_contain_text("Not done")
    expect(stale.get_by_role("button")).to_be_focused()
    first.get_by_label("Role of vera").select_option("viewer")
    first.locator("form", has=first.get_by_label("Role of vera")).get_by_role("button").click()
    expect(first.locator("#said")).to_contain_text("vera: viewer")


def test_a_focused_row_stays_the_same_decision(stage: Stage, open_page: OpenPage) -> None:
    """However many new rows come above it at once, Enter opens the one that has the focus."""
    page = open_page("/decisions")
    rows = page.locator("#live tbody a.row")
    newest, third = (rows.nth(place).get_attribute("href") for place in (0, 2))
    rows.nth(2).focus()
    page.get_by_role("button", name="Pause").evaluate("button => button.click()")
    ask(stage, 24)
    stage.shipped(24)
    page.get_by_role("button", name="Resume").evaluate("button => button.click()")
    page.wait_for_function(OTHER_FIRST, arg=newest)
    assert page.evaluate(f"{FOCUS}.getAttribute('href')") == third


def test_an_open_table_stays_open(stage: Stage, open_page: OpenPage) -> None:
    """A refresh doesn't close it."""
    page = open_page("/")
    figures = page.locator("details.figures").first
    figures.locator("summary").click()
    page.locator("#main").focus()
    requests = page.locator(".stats .stat dd").first
    before = requests.inner_text()
    ask(stage, 1)
    expect(requests).not_to_have_text(before)
    assert figures.get_attribute("open") is not None


def test_a_page_says_when_its_refresh_waits(stage: Stage, open_page: OpenPage) -> None:
    """While the user is in a form within the figures they aren't refreshed, and the page says so; afterwards they are
    refreshed at once.
    """
    page = open_page("/", user="ada")
    requests, word = page.locator(".stats .stat dd").first, page.locator("[data-live-word]")
    page.get_by_text("Declare the baseline").click()
    before = requests.inner_text()
    ask(stage, 1)
    expect(word).to_have_text("Waits while you fill in")
    assert requests.inner_text() == before
    page.locator("#main").focus()
    expect(word).to_have_text("Live")
    expect(requests).not_to_have_text(before, timeout=15_000)


def test_a_hanging_gateway_is_reported(tmp_path: Path, open_page: OpenPage) -> None:
    """Figures aren't marked as live while the gateway doesn't answer, and are again once it does."""
    with running(Stage(tmp_path, workers=1, router="cheapest")) as stage:
        page = open_page("/decisions", on=stage)
        word = page.locator("[data-live-word]")
        assert stage.process is not None
        search = ["pgrep", "-P", str(stage.process.pid), "-f", "gateway.serve.control"]
        found = subprocess.run(search, capture_output=True)
        control = int(found.stdout.split()[0])
        os.kill(control, signal.SIGSTOP)
        try:
            expect(word).to_contain_text("No answer")
        finally:
            os.kill(control, signal.SIGCONT)
        expect(word).to_have_text("Live")


def test_a_dark_page_is_printed_dark_on_white(stage: Stage, open_page: OpenPage, tmp_path: Path) -> None:
    """Browsers print no backgrounds, so light text would be invisible."""
    page = open_page("/users", user="ada", theme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    ink = "getComputedStyle(document.querySelector('main h1')).color.match(/\\d+/g).map(Number)"
    assert max(page.evaluate(ink)) < 100
    assert page.get_by_label("Role of vera").is_visible() and page.get_by_role("button").count() == 0
    stage.add_version(artifact(tmp_path, "printed"))  # a long path in the audit log
    page.goto(page.url.replace("/users", "/audit"))
    page.set_viewport_size({"width": 760, "height": 1000})  # a sheet of A4: no cell is cut at its edge
    assert page.evaluate("document.querySelector('main table').scrollWidth <= window.innerWidth")
