"""This machine's own engine on the models page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, Watch
from tests.browser.stage import Stage, eventually, running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A gateway with the two shipped tiny models."""
    stage = Stage(tmp_path_factory.mktemp("home"), workers=1, router="cheapest", local=True)
    with running(stage):
        yield stage


def test_a_local_engine_shows_its_load_cache_hits_speed_and_energy(
    home: Stage, open_page: OpenPage, watch: Watch
) -> None:
    """Prompts with a common beginning hit the prefix cache, tokens are counted per second, and energy has a figure or
    the reason why there is none.
    """
    eventually(lambda: home.answers("tiny-small"))
    start = "You are the clerk of a small hotel. Take down what the guest wants, in one line of JSON. "

    def ask() -> None:
        for guest in ("a room for 2", "a table for 4 on friday at 7pm", "a taxi at 8"):
            home.ask(start + guest, model="tiny-small", max_tokens=24)

    ask()
    page = open_page("/models", on=home)
    table = page.get_by_role("region", name="Inference servers")
    row = table.get_by_role("row", name="tiny-small")

    def told() -> dict[str, str]:
        ask()
        page.reload()
        heads = [one.strip() for one in table.locator("thead th").all_inner_texts()]
        return dict(zip(heads, row.locator("th, td").all_inner_texts(), strict=True))

    def whole() -> bool:
        seen = told()
        return "tokens/s" in seen["Speed"] and "%" in seen["Prefix hits"] and not seen["Speed"].startswith("0 ")

    eventually(whole)
    seen = told()
    assert seen["Batch"].isdigit() and seen["Waiting"].isdigit()
    assert seen["KV in use"].endswith("%") and seen["KV cached"].endswith("%")
    said = page.locator("main").inner_text()
    assert "J/token" in seen["Energy"] or "does not report how much energy" in said
    expect(page.get_by_role("row", name="home", exact=False).last).to_be_visible()
    assert watch.faults == []
