"""Every page loads without a message on the console, and is accessible."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage, Watch
from tests.browser.stage import AUTH, CLIENT, Stage, eventually, pages, running

AXE = (Path(__file__).parent / "axe.min.js").read_text()
OTHER_NEWEST = "href => document.querySelector('#live tbody a.row').getAttribute('href') !== href"
GRAVE = ("serious", "critical")
RING = """() => {
  const focused = document.activeElement, look = getComputedStyle(focused);
  return [focused.outerHTML.slice(0, 80), look.outlineStyle, parseFloat(look.outlineWidth)];
}"""
"""The element with the focus, and the ring around it."""


COLOURS = ["color-contrast", "link-in-text-block"]
"""Rules whose result may depend on the theme; the others don't involve colours."""
ALL: list[str] = []


def grave_violations(page: Page, rules: list[str] = ALL) -> list[str]:
    """Serious violations found by axe-core."""
    if page.evaluate("typeof axe === 'undefined'"):
        page.evaluate(AXE)
    options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
    found = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{page.url}: {one['id']} at {json.dumps([node['target'] for node in one['nodes']])}"
        for one in found["violations"]
        if one["impact"] in GRAVE
    ]


@pytest.fixture(scope="module")
def jobs(stage: Stage) -> list[str]:
    """Pages of a plan, of a finished job, and of a failed one."""
    waits, begun = stage.plan(6), stage.plan(6)
    done = stage.admin("POST", f"/admin/plans/{begun}/begin", json={})["id"]
    eventually(lambda: stage.admin("GET", f"/admin/batches/{done}")["state"] == "completed")
    bad = stage.admin("POST", "/admin/plans", json={"prompts": "not json"})["id"]
    eventually(lambda: stage.admin("GET", f"/admin/plans/{bad}")["state"] == "refused")
    return [f"/batch/plans/{waits}", f"/batch/{done}", f"/batch/plans/{bad}"]


@pytest.mark.parametrize(
    ("width", "theme", "rules"),
    [
        ("laptop", "light", ALL), ("phone", "dark", COLOURS),
        *(pytest.param(width, theme, ALL, marks=pytest.mark.slow)
          for width, theme in (("laptop", "dark"), ("phone", "light"), ("phone", "dark"))),
    ],
)  # fmt: skip
def test_every_page_loads_and_is_accessible(
    stage: Stage, open_page: OpenPage, watch: Watch, jobs: list[str], width: str, theme: str, rules: list[str]
) -> None:
    """There is no console error, no serious violation, and nothing wider than the screen, on a wide and a narrow
    screen, light and dark.
    """
    decision = stage.admin("GET", "/admin/decisions", params={"limit": 1})["data"][0]["id"]
    page = open_page("/", width=width, theme=theme)
    grave, wide = [], []
    for path in pages(decision, jobs):
        answer = page.goto(stage.url + path)
        assert answer is not None and answer.status == 200, path
        page.wait_for_function("window.htmx !== undefined")
        grave += grave_violations(page, rules)
        if page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
            wide.append(path)
    assert watch.faults == []
    assert grave == []
    assert wide == []


@pytest.mark.parametrize("width", ["laptop", "phone"])
def test_error_pages_are_accessible(stage: Stage, open_page: OpenPage, width: str) -> None:
    """These are a missing page, one that the role may not see, and a failed login."""
    page = open_page("/", user="vera", width=width)
    grave = []
    for path, words in (("/decisions/dec_none", "dec_none"), ("/users", "needs the role admin")):
        page.goto(stage.url + path)
        expect(page.locator("main .notice")).to_contain_text(words)
        grave += both_themes(page)
    page.goto(f"{stage.url}/login")
    page.get_by_label("Password or master key").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("main .notice")).to_contain_text("wrong")
    assert grave + both_themes(page) == []


def both_themes(page: Page) -> list[str]:
    """All rules in the light theme, and those on colours in the dark one."""
    page.emulate_media(color_scheme="light")
    grave = grave_violations(page)
    page.emulate_media(color_scheme="dark")
    return grave + [f"dark, {one}" for one in grave_violations(page, COLOURS)]


def test_every_focused_control_has_a_visible_ring(open_page: OpenPage) -> None:
    """That holds from the first link to the last control of a route's page."""
    page = open_page("/routes/auto")
    unseen = []
    for _ in range(45):
        page.keyboard.press("Tab")
        where, style, width = page.evaluate(RING)
        if style == "none" or width < 1:
            unseen.append(where)
    assert unseen == []


def test_the_chosen_theme_stays(open_page: OpenPage) -> None:
    """The button goes from the system's theme to light to dark; the next page has it before any script runs."""
    page = open_page("/")
    button = page.get_by_role("button", name="Theme")
    button.click()
    button.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("link", name="Routes", exact=True).click()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_a_knob_can_be_moved_by_keyboard(stage: Stage, open_page: OpenPage) -> None:
    """Tab leads past the navigation into the page, arrow keys move the slider, and its effect is announced."""
    page = open_page("/routes/auto")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    slider = page.get_by_label("Cost weight, slider")
    slider.focus()
    with page.expect_response(lambda answer: "/effect?" in answer.url):
        page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="What this turn would do").wait_for()
    turned = page.locator("#cost_weight").input_value()
    assert float(turned) > stage.admin("GET", "/admin/routes/auto")["knobs"]["cost_weight"]
    assert slider.get_attribute("aria-valuetext") == turned


def test_short_names_are_not_wrapped_on_a_phone(open_page: OpenPage) -> None:
    """A table wider than the screen scrolls instead."""
    page = open_page("/models", width="phone")
    names = page.locator("th[scope=row] > a").first
    assert names.evaluate("e => e.getClientRects().length") == 1


def test_the_menu_opens_and_closes_on_a_phone(open_page: OpenPage) -> None:
    """Its button opens it; Escape closes it and returns the focus."""
    page = open_page("/", width="phone")
    menu = page.get_by_role("button", name="Menu")
    assert page.get_by_role("link", name="Certificates").is_hidden()
    menu.click()
    assert page.get_by_role("link", name="Certificates").is_visible()
    page.keyboard.press("Escape")
    assert page.get_by_role("link", name="Certificates").is_hidden()
    assert menu.evaluate("e => e === document.activeElement")


def test_figures_are_refreshed_without_a_reload(stage: Stage, open_page: OpenPage, watch: Watch) -> None:
    """A request made while the page is open appears on it, and the page wasn't loaded again."""
    page = open_page("/decisions")
    page.evaluate("window.mine = 1")
    newest = page.locator("#live tbody a.row").first.get_attribute("href")
    stage.ask("What is 1 + 1? Answer with the number only.")
    page.wait_for_function(OTHER_NEWEST, arg=newest)
    assert page.evaluate("window.mine") == 1
    assert watch.faults == []


def test_a_paused_page_is_not_refreshed(stage: Stage, open_page: OpenPage) -> None:
    """Once it is resumed it shows what came meanwhile."""
    page = open_page("/decisions")
    page.get_by_role("button", name="Pause").click()
    newest = page.locator("#live tbody a.row").first.get_attribute("href")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    stage.ask("What is 2 + 2? Answer with the number only.")
    page.wait_for_timeout(3500)
    assert asked == []
    page.get_by_role("button", name="Resume").click()
    page.wait_for_function(OTHER_NEWEST, arg=newest)


class LongNames(Stage):
    """A gateway with a model and routes whose names are very long, or HTML."""

    names = ("w" * 200, "<img src=x onerror=alert(1)>")

    def write_config(self) -> None:
        super().write_config()
        with self.config.open("a") as file:
            for name in self.names:
                models = f"models = ['{name}', 'small']\ncost_weight = 0.9\nstore_text = true"
                file.write(f"[[models]]\nname = '{name}'\nprovider = 'script'\ninput_usd_per_mtok = 9.0\n"
                           f"[[routes]]\nname = 'r{name}'\n{models}\n")  # fmt: skip


def test_no_name_makes_a_page_wider_than_the_screen(tmp_path: Path, open_page: OpenPage, watch: Watch) -> None:
    """Names have two hundred characters without a space, or a script, wherever a tenant may choose them: nothing is cut
    off, and nothing is executed.
    """
    with running(LongNames(tmp_path, workers=1)) as stage:
        routes = [f"r{name}" for name in stage.names]
        decisions = [stage.ask(stage.names[1], route).headers["x-headgate-decision-id"] for route in routes * 9]
        stage.shipped(len(decisions))
        for name in stage.names:
            said = {"decision_id": decisions[0], "score": 0.0, "label": name, "comment": name, "source": name}
            CLIENT.post(f"{stage.api}/feedback", json=said, headers=AUTH).raise_for_status()
            stage.admin("POST", "/admin/keys", json={"name": name[:99], "tenant": name[:99]})
        stage.ask(stage.names[1], user=stage.names[1], metadata={"a": stage.names[1]})
        page = open_page("/", on=stage)
        edits = [f"/models/edit?name={quote(name)}" for name in stage.names]
        wide = []
        for across in (1280, 320):
            page.set_viewport_size({"width": across, "height": 700})
            for path in [*pages(decisions[0]), *(f"/routes/{quote(route)}" for route in routes), *edits]:
                answer = page.goto(stage.url + path)
                assert answer is not None and answer.status == 200, path
                if page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
                    wide.append((across, path[:40]))
    assert watch.faults == []
    assert wide == []
