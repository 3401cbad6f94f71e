"""An empty journal, and a database that goes away and comes back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from gateway.journal.schema import migrate
from tests.browser.conftest import OpenPage, Watch
from tests.browser.stage import Stage, eventually, running
from tests.postgres_server import PostgresServer


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[Stage]:
    """A gateway on PostgreSQL without any traffic."""
    url = postgres_server.new_database()
    migrate(url)
    stage = Stage(tmp_path_factory.mktemp("bare"), storage=url, workers=1, router="cheapest")
    with running(stage):
        yield stage


def test_an_empty_journal_says_what_to_do(bare: Stage, open_page: OpenPage, watch: Watch) -> None:
    """Every page loads, and its empty state names the next step."""
    page = open_page("/", on=bare)
    for path, words in (
        ("/", "Send one"), ("/decisions", "Send a request"), ("/routes/auto", "Send requests"),
        ("/learning", "headgate learn"),
        ("/certificates", "Request one below"), ("/cache", "An answer is cached once"), ("/labels", "Nothing to label"),
        ("/feedback", "POST /v1/feedback"), ("/keys", "Make one below"), ("/users", "Add users"),
    ):  # fmt: skip
        page.goto(bare.url + path)
        assert words.lower() in page.locator("main").inner_text().lower(), path
    assert watch.faults == []


def test_the_database_goes_away_and_comes_back(
    bare: Stage, open_page: OpenPage, postgres_server: PostgresServer
) -> None:
    """Pages report it and keep their figures, requests are answered, and a form keeps its values and says that nothing
    was changed. Afterwards all works, and nothing was half applied.
    """
    page, knobs = open_page("/routes", on=bare), open_page("/routes/auto", on=bare)
    knobs.get_by_label("Why").fill("while it is away")
    bare.ask("hello")
    postgres_server.stop()
    try:
        expect(page.locator("[data-live-word]")).to_contain_text("without the database")
        assert bare.ask("hello again").status_code == 200
        page.goto(f"{bare.url}/decisions")
        expect(page.locator("main .notice")).to_contain_text("database is away")
        assert "Requests are still answered" in page.locator("main").inner_text()
        knobs.get_by_role("button", name="Apply", exact=True).click()
        expect(knobs.locator("#knobs .problem")).to_contain_text("nothing was changed")
        assert knobs.locator("#why").input_value() == "while it is away"
    finally:
        postgres_server.start()
    eventually(lambda: bare.admin("GET", "/admin/routes/auto")["setting_version"] == 0)
    page.goto(f"{bare.url}/decisions")
    eventually(lambda: page.reload() and page.locator("#live tbody tr").count() >= 2)
