"""Changing knobs and versions on a page: every worker obeys, and each change can be undone."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.stage import Stage, artifact, eventually

POEM = "Write a sad poem of 4 lines about the sea."


def set_knob(page: Page, name: str, value: str) -> None:
    """Set a knob by its number, and wait for its predicted effect."""
    if not page.locator(f"#{name}").is_visible():
        page.get_by_text("More knobs").click()
    with page.expect_response(lambda answer: "/effect?" in answer.url):
        page.locator(f"#{name}").fill(value)


def apply(page: Page) -> None:
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator("#said")).to_contain_text("in force")


def test_a_changed_knob_shows_its_effect_and_is_obeyed(stage: Stage, open_page: OpenPage) -> None:
    """The prediction has an interval; once it is applied every worker obeys, and an undo restores the knob."""
    asked = {"cost_weight": 0.55}
    eventually(lambda: stage.admin("POST", "/admin/routes/auto/preview", json=asked)["rounds"] >= 250)
    page = open_page("/routes/auto", user="otto")
    set_knob(page, "cost_weight", "0.55")
    expect(page.get_by_role("heading", name="What this turn would do")).to_be_visible()
    cost = page.locator("#effect tbody tr").nth(1).inner_text()
    assert cost.count("$") >= 3 and cost.count(" to ") >= 3
    set_knob(page, "explore", "0")
    set_knob(page, "cost_weight", "1")
    apply(page)
    eventually(lambda: stage.answered_by(POEM, 24) == {"small"})
    row = stage.admin("GET", "/admin/audit", params={"limit": 1})[0]
    assert row["actor"] == "otto" and "auto" in row["target"] + str(row["detail"])
    page.get_by_role("button", name="Undo this change").click()
    expect(page.locator("#said")).to_contain_text("Undone")
    eventually(lambda: stage.answered_by(POEM, 24) != {"small"})


def test_too_little_evidence_is_reported_with_what_it_would_take(stage: Stage, open_page: OpenPage) -> None:
    """A knob that sends everything to a rarely tried model has no predicted quality, but the number of calls needed."""
    page = open_page("/routes/auto", user="otto")
    expect(page.get_by_role("heading", name="As the knobs are now")).to_be_visible()
    assert page.get_by_role("heading", name="What this turn would do").count() == 0
    set_knob(page, "max_latency_s", "0.05")
    expect(page.get_by_role("heading", name="What this turn would do")).to_be_visible()
    expect(page.get_by_text("not enough evidence").first).to_be_visible()
    expect(page.get_by_text("What it would take").filter(has_text="more explored calls").last).to_be_visible()


def test_an_impossible_value_is_refused_beside_its_field(stage: Stage, open_page: OpenPage) -> None:
    """The value stays, the field is marked, and nothing is applied."""
    before = stage.admin("GET", "/admin/routes/auto")["setting_version"]
    page = open_page("/routes/auto", user="otto")
    set_knob(page, "cost_weight", "7")
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator("#knobs .problem")).to_contain_text("must be at most 1")
    assert page.locator("#cost_weight").get_attribute("aria-invalid") == "true"
    assert page.locator("#cost_weight").input_value() == "7"
    assert stage.admin("GET", "/admin/routes/auto")["setting_version"] == before


def test_the_second_of_two_operators_gets_a_conflict(stage: Stage, open_page: OpenPage) -> None:
    """Both see the same knobs; the first change is in force, and the second is refused and names the first."""
    first, second = open_page("/routes/auto", user="otto"), open_page("/routes/auto", user="ada")
    set_knob(first, "cost_weight", "0.45")
    apply(first)
    set_knob(second, "cost_weight", "0.55")
    second.get_by_role("button", name="Apply", exact=True).click()
    expect(second.locator("#knobs .problem")).to_contain_text("otto")
    assert stage.admin("GET", "/admin/routes/auto")["knobs"]["cost_weight"] == 0.45
    second.get_by_role("link", name="Show what is in force now").click()
    assert second.locator("#cost_weight").input_value() == "0.45"


def test_knobs_are_tried_before_they_are_applied(stage: Stage, open_page: OpenPage) -> None:
    """A shadow changes no answer, is shown as a trial, and can be ended."""
    page = open_page("/routes/auto", user="otto")
    set_knob(page, "cost_weight", "0.8")
    page.get_by_role("button", name="In the shadow").click()
    expect(page.get_by_role("heading", name="On trial")).to_be_visible()
    assert stage.admin("GET", "/admin/routes/auto")["trial"] == "shadow"
    page.get_by_role("button", name="End the trial").click()
    expect(page.get_by_role("heading", name="On trial")).to_have_count(0)


def test_a_bad_version_is_rolled_back(stage: Stage, open_page: OpenPage, tmp_path: Path) -> None:
    """Promoted on the page, it decides; rolled back, the version before it does."""
    good = stage.add_version(artifact(stage.folder, "good"))
    bad = stage.add_version(artifact(stage.folder, "bad", spoilt=True))
    page = open_page("/learning?route=auto", user="otto")
    page.on("dialog", lambda dialog: dialog.accept())
    for version in (good, bad):
        page.locator(f"#promote-{version} button").click()
        expect(page.locator("#said")).to_contain_text(f"{version} serves the route")
    eventually(lambda: routers_of(stage) == {"linear@bad"})
    page.get_by_role("button", name="Roll back").first.click()
    expect(page.locator("#said")).to_contain_text(f"Rolled back: {good}")
    eventually(lambda: routers_of(stage) == {"linear@good"})
    assert "rolled back" in page.get_by_role("row", name=bad).inner_text()


def routers_of(stage: Stage) -> set[str]:
    """The routers that decide now, over enough connections to reach every worker."""
    ids = [stage.ask(POEM).headers["x-headgate-decision-id"] for _ in range(8)]
    return {eventually(lambda: stage.admin("GET", f"/admin/decisions/{id}"))["router"] for id in ids}
