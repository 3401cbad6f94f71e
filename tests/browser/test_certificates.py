"""A quality floor is refused with what it would take, issued with what it is based on, enforced, and revoked."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage, Watch
from tests.browser.stage import Stage


def ask(page: Page, floor: str, confidence: str) -> None:
    page.get_by_label("Floor, share of the reference").fill(floor)
    page.get_by_label("Confidence").fill(confidence)
    page.get_by_role("button", name="Test and issue").click()


def test_a_certificate_is_refused_issued_enforced_and_revoked(
    stage: Stage, open_page: OpenPage, watch: Watch
) -> None:
    """It is refused where the data doesn't support it; where it does, enforcing sets the knob to the certified value.
    """
    page = open_page("/certificates?route=auto", user="otto")
    page.on("dialog", lambda dialog: dialog.accept())
    ask(page, "1", "0.999")
    expect(page.locator("main .notice.warn")).to_contain_text("Not enough evidence")
    assert stage.admin("GET", "/admin/certificates") == []
    ask(page, "0.4", "0.8")
    expect(page.locator("#said")).to_contain_text("The certificate is issued")
    expect(page.get_by_role("heading", name="auto: at least 40 % of large's quality")).to_be_visible()
    assert "scored, randomised decisions" in page.locator("main").inner_text()
    page.get_by_label("Put the certified knob into force").check()
    ask(page, "0.5", "0.8")
    expect(page.get_by_text("enforced", exact=True)).to_be_visible()
    found = stage.admin("GET", "/admin/certificates")
    assert len(found) == 2 and found[0]["kind"] == "knob"
    assert stage.admin("GET", "/admin/routes/auto")["knobs"]["cost_weight"] == found[0]["cost_weight"]
    for left in (1, 0):
        page.get_by_role("button", name="Revoke").first.click()
        expect(page.get_by_role("button", name="Revoke")).to_have_count(left)
    assert {one["standing"] for one in stage.admin("GET", "/admin/certificates")} == {"revoked"}
    version = stage.admin("GET", "/admin/routes/auto")["setting_version"]
    stage.admin("POST", "/admin/routes/auto/undo", params={"version": version})
    assert [fault for fault in watch.faults if "409" not in fault] == []


def test_an_impossible_floor_is_refused_beside_its_field(stage: Stage, open_page: OpenPage) -> None:
    """It is above one, or no number; the value stays in the field, and nothing is issued."""
    page = open_page("/certificates?route=auto", user="otto")
    count = len(stage.admin("GET", "/admin/certificates"))
    for floor, words in (("7", "must be at most 1"), ("high", "must be a number"), ("0", "more than 0")):
        ask(page, floor, "0.95")
        expect(page.locator("#issue-form .problem")).to_contain_text(words)
        assert page.get_by_label("Floor, share of the reference").input_value() == floor
    assert len(stage.admin("GET", "/admin/certificates")) == count


def test_of_two_operators_who_enforce_a_floor_the_second_gets_a_conflict(stage: Stage, open_page: OpenPage) -> None:
    """The route was changed since the page was loaded, so nothing is issued or changed."""
    page = open_page("/certificates?route=auto", user="otto")
    count = len(stage.admin("GET", "/admin/certificates"))
    seen = stage.admin("GET", "/admin/routes/auto")
    turned = {"knobs": {**seen["knobs"], "cost_weight": 0.4}, "version": seen["setting_version"]}
    version = stage.admin("PUT", "/admin/routes/auto/knobs", json=turned)["setting"]["version"]
    page.get_by_label("Put the certified knob into force").check()
    ask(page, "0.4", "0.8")
    expect(page.locator("#issue-form .problem")).to_contain_text("master changed route:auto")
    assert len(stage.admin("GET", "/admin/certificates")) == count
    assert stage.admin("GET", "/admin/routes/auto")["knobs"]["cost_weight"] == 0.4
    stage.admin("POST", "/admin/routes/auto/undo", params={"version": version})
