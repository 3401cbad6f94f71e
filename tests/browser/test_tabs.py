"""Two tabs change the same object: the second one gets a conflict, and nothing is overwritten unseen."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.browser.stage import Stage, artifact


def test_an_older_page_does_not_restore_a_keys_old_values(stage: Stage, open_page: OpenPage) -> None:
    """A form sends all of a key's limits, so the second one would restore the first one's old value."""
    id = stage.admin("POST", "/admin/keys", json={"name": "two tabs"})["record"]["id"]
    first, second = (open_page(f"/keys/edit?id={id}", user="ada") for _ in range(2))
    first.get_by_label("Routes and models").fill("small")
    first.get_by_role("button", name="Save").click()
    expect(first.locator("#said")).to_contain_text("Key two tabs is changed")
    second.get_by_label("Last day").fill("2040-01-31")
    second.get_by_role("button", name="Save").click()
    expect(second.locator("#key-change .problem")).to_contain_text("changed meanwhile")
    assert second.get_by_label("Last day").input_value() == "2040-01-31"
    assert stage.admin("GET", f"/admin/keys/{id}")["models"] == ["small"]
    second.get_by_role("link", name="Show what is in force now").click()
    expect(second.get_by_label("Routes and models")).to_have_value("small")


def test_a_version_is_rolled_back_once(stage: Stage, open_page: OpenPage, tmp_path: Path) -> None:
    """Two operators who saw the same version roll it back: one step is taken, and the second gets a conflict."""
    versions = [stage.add_version(artifact(tmp_path, name)) for name in ("before", "after")]
    for version in versions:
        stage.admin("POST", f"/admin/learning/auto/versions/{version}/promote")
    first, second = (open_page("/learning?route=auto", user="otto") for _ in range(2))
    for page in (first, second):
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Pause").click()
        page.wait_for_load_state("networkidle")
    back = [page.get_by_role("button", name="Roll back").first for page in (first, second)]
    back[0].click()
    expect(first.locator("#said")).to_contain_text(f"Rolled back: {versions[0]}")
    back[1].click()
    expect(second.locator("main")).to_contain_text(f"auto is now served by {versions[0]}")
    assert stage.admin("GET", "/admin/learning", params={"route": "auto"})[0]["live"] == versions[0]
    stage.admin("POST", "/admin/learning/auto/roll-back")


def test_a_prediction_on_an_older_page_says_so(stage: Stage, open_page: OpenPage) -> None:
    """Before anything is sent, it says that it compares with other values than those on the page."""
    page = open_page("/routes/auto", user="otto")
    version = stage.admin("GET", "/admin/routes/auto")["setting_version"]
    change = {"knobs": {"cost_weight": 0.35}, "version": version}
    done = stage.admin("PUT", "/admin/routes/auto/knobs", json=change)["setting"]["version"]
    page.locator("#cost_weight").fill("0.65")
    expect(page.locator("#effect .notice").first).to_contain_text("master has changed these knobs")
    page.get_by_role("link", name="Load the page again").click()
    expect(page.locator("#cost_weight")).to_have_value("0.35")
    with page.expect_response(lambda answer: "/effect?" in answer.url):
        page.locator("#cost_weight").fill("0.65")
    expect(page.get_by_role("heading", name="What this turn would do")).to_be_visible()
    assert page.locator("#effect").get_by_text("has changed these knobs").count() == 0
    stage.admin("POST", "/admin/routes/auto/undo", params={"version": done})
