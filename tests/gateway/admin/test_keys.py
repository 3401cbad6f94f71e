"""Keys in the admin API and on their page, where there are many."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from gateway.admin import keys
from gateway.admin.services import AdminServices
from gateway.config.types import Auth, KeyConfig, Secret
from gateway.dashboard.pages import access
from gateway.keys import new_key
from tests.gateway.admin.traffic import recent, write


@pytest.fixture
def named(admin: AdminServices, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Seven keys of two tenants, with three keys on a page."""
    monkeypatch.setattr(access, "KEYS_SHOWN", 3)
    made = [new_key(f"key-{number}", float(number), tenant=f"team{number % 2}")[1] for number in range(7)]
    for record in made:
        admin.store.add_key(record, "test")
    return [record.name for record in made]


def shown(page: httpx.Response) -> list[str]:
    return [part.partition("<")[0] for part in page.text.split('<th scope="row">')[1:]]


async def test_keys_are_shown_by_the_page(client: httpx.AsyncClient, named: list[str]) -> None:
    """A page shows the total and links to the next and previous page; the last page has the remaining keys."""
    first, last = await client.get("/keys"), await client.get("/keys?start=6")
    assert shown(first) == named[:3] and "Keys 1 to 3 of 7." in first.text and "start=3" in first.text
    assert shown(last) == named[6:] and "start=3" in last.text and "start=9" not in last.text


async def test_keys_are_searched(client: httpx.AsyncClient, named: list[str]) -> None:
    """Search matches parts of name or tenant, in any case, among all keys and not only those of the page."""
    assert shown(await client.get("/keys?search=KEY-5")) == ["key-5"]
    found = await client.get("/keys?search=team1")
    assert shown(found) == ["key-1", "key-3", "key-5"] and "Further" not in found.text
    assert "No key matches" in (await client.get("/keys?search=nobody")).text


async def test_keys_of_the_file_follow_on_the_same_pages(admin: AdminServices, named: list[str]) -> None:
    """A page may have the last keys created here and the first ones of the configuration file."""
    stated = [KeyConfig(name=f"file-{number}", key=Secret(f"hg-{number:032d}")) for number in range(4)]
    admin.config = replace(admin.config, auth=Auth(keys=stated))
    found = keys.key_page(admin, 3, start=6)
    assert [row.name for row in found.rows] == ["key-6", "file-0", "file-1"] and found.found == 11
    assert [row.name for row in keys.key_page(admin, 3, start=9).rows] == ["file-2", "file-3"]


def test_spend_is_added_up_once_for_all_keys(admin: AdminServices, named: list[str]) -> None:
    """The database sums up the spend of all keys at once; one query per key took minutes for ten thousand keys."""
    ids, now_s = [row.id for row in keys.key_rows(admin)], time.time()
    write(
        admin, *(recent(number, time_s=now_s, key_id=id, cost_nanousd=3_000_000_000) for number, id in enumerate(ids))
    )
    with watched(admin.store.engine) as statements:
        assert [row.spent.spent_usd for row in keys.key_rows(admin)] == [3.0] * 7
    assert [one.partition("GROUP BY ")[2] for one in statements if "FROM spend" in one] == ["spend.key_id"]


async def test_counters_have_a_maximum_number_of_steps(client: httpx.AsyncClient) -> None:
    """All hourly counters and a week of counters by the minute are returned; the error of a larger request says what to
    ask for.
    """
    assert (await client.get("/admin/stats?since_s=0&step_s=3600")).status_code == 200
    refused = await client.get("/admin/stats?since_s=0")
    assert refused.status_code == 422 and "longer step_s" in refused.json()["error"]["message"]


@contextmanager
def watched(engine: sa.Engine) -> Iterator[list[str]]:
    """Collects the SQL statements executed in the block."""
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        found.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
