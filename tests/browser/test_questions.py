"""Three questions of a new user, answered by the pages alone within a number of clicks."""

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
    """Counts clicks from the first page on; typing and dragging are no clicks."""
    page.add_init_script(COUNT)
    page.reload()
    page.evaluate("sessionStorage.clicks = 0")
    yield
    assert 0 < int(page.evaluate("sessionStorage.clicks")) <= most


def test_this_weeks_savings_are_one_click_away(open_page: OpenPage) -> None:
    """The page has the amount, its interval and its confidence, against sending everything to the most expensive model,
    and against chance.
    """
    page = open_page("/", user="vera")
    with clicks(page, 1):
        page.get_by_role("link", name="Week").click()
        saved = page.get_by_role("region", name="Savings")
        expect(saved.get_by_role("heading", name="Saved against sending everything to large")).to_be_visible()
        expect(saved.locator(".sure").first).to_contain_text("95 %")
        assert saved.locator(".sure").first.inner_text().count("$") == 2
        expect(saved.get_by_role("heading", name="Saved against choosing models at random")).to_be_visible()


def test_the_reason_for_a_choice_is_two_clicks_away(stage: Stage, open_page: OpenPage) -> None:
    """The first page links to the answers of `large`, and from there to a decision with its sentence and the other
    candidates.
    """
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
    """Whether the newest answer of `large` in the journal was chosen by the router among all models, and not by a plan.
    """
    if stage.ask(POEM).headers["x-headgate-model"] != "large":
        return False
    newest = stage.admin("GET", "/admin/decisions", params={"limit": 1, "answered_model": "large"})["data"]
    return bool(newest) and len(stage.admin("GET", f"/admin/decisions/{newest[0]['id']}")["candidates"]) == 3


def test_the_effect_of_a_doubled_cost_weight_is_two_clicks_away(stage: Stage, open_page: OpenPage) -> None:
    """They lead to the routes and to the route; there the number is typed or the slider moved, and the effect is shown
    beside it.
    """
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
