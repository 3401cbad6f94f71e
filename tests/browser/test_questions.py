"""The three questions of somebody who is new here, by what the pages say alone, and how many clicks each takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.stage import Stage, eventually
from tests.browser.test_steer import POEM

COUNT = """addEventListener("click", event => {
  if (event.isTrusted) sessionStorage.clicks = Number(sessionStorage.clicks ?? 0) + 1;
}, true);"""


@contextmanager
def clicks(page: Page, most: int) -> Iterator[None]:
    """From the first page on; typing and dragging are no clicks."""
    page.add_init_script(COUNT)
    page.reload()
    page.evaluate("sessionStorage.clicks = 0")
    yield
    assert 0 < int(page.evaluate("sessionStorage.clicks")) <= most


def test_what_was_saved_this_week_and_how_sure_is_one_click_away(open_page: OpenPage) -> None:
    """The amount, its interval and its confidence, against everything to the dearest model; and against chance."""
    page = open_page("/", user="vera")
    with clicks(page, 1):
        page.get_by_role("link", name="Week").click()
        saved = page.get_by_role("region", name="Savings")
        expect(saved.get_by_role("heading", name="Saved against sending everything to large")).to_be_visible()
        expect(saved.locator(".sure").first).to_contain_text("95 %")
        assert saved.locator(".sure").first.inner_text().count("$") == 2
        expect(saved.get_by_role("heading", name="Saved against choosing models at random")).to_be_visible()


def test_why_a_request_went_to_the_large_model_is_two_clicks_away(stage: Stage, open_page: OpenPage) -> None:
    """From the first page to what `large` answered, and from there to one of them: the sentence, and the others."""
    eventually(lambda: routed_to_large(stage))
    page = open_page("/", user="vera")
    with clicks(page, 2):
        page.get_by_role("region", name="Requests and spend by answered by").get_by_role("link", name="large").click()
        page.locator("#results tbody a.row").first.click()
        expect(page.get_by_role("heading", name="Why large answered")).to_be_visible()
        said = page.locator(".why").all_inner_texts()
        assert any("large" in line and ("expected to score" in line or "to learn from it" in line) for line in said)
        assert page.get_by_role("region", name="Candidates").locator("tbody tr").count() == 3


def routed_to_large(stage: Stage) -> bool:
    """Whether the newest of its answers that the journal holds is the router's choice among all, not a plan's."""
    if stage.ask(POEM).headers["x-headgate-model"] != "large":
        return False
    newest = stage.admin("GET", "/admin/decisions", params={"limit": 1, "answered_model": "large"})["data"]
    return bool(newest) and len(stage.admin("GET", f"/admin/decisions/{newest[0]['id']}")["candidates"]) == 3


def test_what_twice_the_cost_weight_would_do_is_two_clicks_away(stage: Stage, open_page: OpenPage) -> None:
    """To the routes, to the route; then the number is typed or the slider drawn, and the effect is said beside it."""
    eventually(lambda: stage.admin("POST", "/admin/routes/auto/preview", json={})["rounds"] >= 250)
    page = open_page("/", user="vera")
    with clicks(page, 2):
        page.get_by_role("link", name="Routes", exact=True).click()
        page.get_by_role("link", name="auto", exact=True).first.click()
        page.locator("#cost_weight").focus()
        page.locator("#cost_weight").fill("1")
        expect(page.get_by_role("heading", name="What this turn would do")).to_be_visible()
        expect(page.locator("#effect-words")).to_contain_text("of the requests would go to another model")
        assert page.get_by_role("region", name="Predicted effect").locator("tbody tr").count() == 4
