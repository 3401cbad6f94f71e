"""Daily work: a decision is explained, a label given, a cache entry deleted, a key made, a model added."""

from __future__ import annotations

import re

import httpx
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, Watch
from tests.browser.stage import Stage, eventually

QUESTION = "What is 4711 + 1174? Answer with the number only."


def test_a_decision_is_found_explained_and_repeated(stage: Stage, open_page: OpenPage, watch: Watch) -> None:
    """It is found by the id in its answer's header; candidates, attempt and text are shown, and repeating it at cost
    weight 1 differs.
    """
    answer = stage.ask("Write a solemn poem of 5 lines about an old house.")
    id, model = answer.headers["x-headgate-decision-id"], answer.headers["x-headgate-model"]
    page = open_page("/decisions", user="otto")
    page.get_by_label("Open by id").fill(id)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{stage.url}/decisions/{id}")
    expect(page.get_by_role("heading", name=f"Why {model} answered")).to_be_visible()
    candidates = page.get_by_role("region", name="Candidates")
    for name in ("small", "middle", "large"):
        assert name in candidates.inner_text()
    assert "an old house" in page.locator("main").inner_text()
    page.get_by_label("Cost weight").fill("1")
    page.get_by_role("button", name="Replay").click()
    expect(page.locator("#replay [role=status]")).to_contain_text(re.compile("differs in|instead of"))
    assert watch.faults == []


def test_decisions_are_filtered(stage: Stage, open_page: OpenPage) -> None:
    """Only matching ones are listed, and the page's address has the filter, so that it can be shared."""
    page = open_page("/decisions", user="vera")
    page.get_by_label("Answered by").select_option("large")
    page.wait_for_url("**answered_model=large**")
    answered = page.locator("#results tbody tr td:nth-child(2)").all_inner_texts()
    assert answered and all(text.startswith("large") for text in answered)
    page.reload()
    assert page.get_by_label("Answered by").input_value() == "large"


def test_an_invalid_cost_is_refused_in_place(open_page: OpenPage) -> None:
    """The error is beside the filter, and the list stays."""
    page = open_page("/decisions")
    rows = page.locator("#results tbody tr").count()
    page.get_by_label("Cost from, $").fill("cheap")
    expect(page.locator("#filters .problem")).to_contain_text("must be a number")
    assert page.locator("#results tbody tr").count() == rows


def test_a_label_is_given_with_one_key(stage: Stage, open_page: OpenPage) -> None:
    """The first decision of the queue gets its score, and the next one follows."""
    page = open_page("/labels", user="otto")
    card = page.locator("[data-label-card]")
    form = card.locator("form")
    id = (form.get_attribute("action") or "").rsplit("/", 1)[1]
    card.focus()
    page.keyboard.press("1")
    expect(page.locator("#said")).to_contain_text("Recorded")
    assert (page.locator("[data-label-card] form").get_attribute("action") or "").rsplit("/", 1)[1] != id
    said = eventually(lambda: stage.admin("GET", f"/admin/decisions/{id}")["feedback"])
    assert said[0]["score"] == 1.0


def test_a_cache_entry_is_deleted(stage: Stage, open_page: OpenPage) -> None:
    """Asked again, its question makes an upstream call at every worker."""

    def cached() -> str:
        return stage.ask(QUESTION, model="kept").headers["x-headgate-cache"]

    stage.ask(QUESTION, model="kept")
    eventually(lambda: cached() == "hit")
    page = open_page("/cache", user="otto")
    page.on("dialog", lambda dialog: dialog.accept())
    rows = page.locator("#entry-list tbody tr")
    expect(rows.first).to_be_visible()
    while count := rows.count():
        rows.first.get_by_role("button", name="Delete").click()
        expect(rows).to_have_count(count - 1)
        expect(page.locator("#said")).to_contain_text("deleted")
    assert cached() == "miss"


def test_a_key_is_shown_once_and_works_until_it_is_revoked(stage: Stage, open_page: OpenPage) -> None:
    """Its plaintext is on one page only. A budget that two workers could not share is refused in the form."""
    page = open_page("/keys", user="ada")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_label("Name").fill("shop")
    page.get_by_label("Budget, $").fill("25")
    page.get_by_role("button", name="Make the key").click()
    expect(page.locator("#key-form .problem")).to_contain_text("storage.redis_url")
    page.get_by_label("Budget, $").fill("")
    page.get_by_role("button", name="Make the key").click()
    key = page.locator("#made-key").inner_text()

    def status() -> int:
        sent = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
        auth = {"authorization": f"Bearer {key}"}
        return httpx.post(f"{stage.api}/chat/completions", json=sent, headers=auth).status_code

    eventually(lambda: status() == 200)
    page.goto(f"{stage.url}/keys")
    assert key not in page.content()
    earlier = key
    page.get_by_role("link", name="Change shop").click()
    page.get_by_role("button", name="Rotate").click()
    key = page.locator("#made-key").inner_text()
    assert key != earlier
    eventually(lambda: status() == 200)
    page.goto(f"{stage.url}/keys")
    expect(page.locator("tr", has_text="shop")).to_contain_text("earlier secret until")
    page.get_by_role("button", name="Revoke shop").click()
    expect(page.locator("#said")).to_contain_text("revoked")
    eventually(lambda: status() == 401)


def test_a_form_marks_the_invalid_field(open_page: OpenPage) -> None:
    """The value is a negative budget, which stays in the form."""
    page = open_page("/keys", user="ada")
    page.get_by_label("Name").fill("odd")
    page.get_by_label("Budget, $").fill("-3")
    page.get_by_role("button", name="Make the key").click()
    expect(page.locator("#key-form .problem")).to_contain_text("Budget, $: must be at least 0")
    assert page.get_by_label("Name").input_value() == "odd"


def test_a_provider_and_a_model_are_added_and_answer(stage: Stage, open_page: OpenPage) -> None:
    """There is no restart; the provider's secret is written and never shown again."""
    secret = "sk-never-to-be-seen"
    upstream = stage.admin("GET", "/admin/fleet")["providers"][0]["base_url"] or f"{stage.api}"
    page = open_page("/providers/edit", user="ada")
    page.get_by_label("Name", exact=True).fill("second")
    page.get_by_label("Base URL").fill(upstream if upstream.startswith("http") else stage.api)
    page.get_by_label("Secret key").fill(secret)
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#said")).to_contain_text("Provider second is in force")
    assert page.url == f"{stage.url}/models"
    page.evaluate("htmx.trigger('#live', 'moved')")
    page.wait_for_load_state("networkidle")
    expect(page.get_by_role("row", name="second")).to_be_visible()
    page.goto(f"{stage.url}/providers/edit?name=second")
    assert secret not in page.content() and "Leave empty to keep it" in page.content()
    page.goto(f"{stage.url}/models/edit")
    page.get_by_label("Name", exact=True).fill("fourth")
    page.get_by_label("Provider").select_option("script")
    page.get_by_label("Name there").fill("small")
    page.get_by_label("Input, $ per million tokens").fill("0.2")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#said")).to_contain_text("Model fourth is in force")
    eventually(lambda: all(stage.answers("fourth") for _ in range(8)))
    assert secret not in str(stage.admin("GET", "/admin/fleet")) + str(stage.admin("GET", "/admin/audit"))
