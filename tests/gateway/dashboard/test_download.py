"""Lists that are downloaded: all rows, filtered as on the page, and harmless in a spreadsheet."""

from __future__ import annotations

import csv
from io import StringIO

import httpx
import pytest

from gateway.admin.services import AdminServices
from gateway.journal.record import AuditRecord
from tests.gateway.admin.conftest import admin, client, migrated
from tests.gateway.admin.traffic import recent, write
from tests.gateway.journal.records import NOON_S

__all__ = ["admin", "client", "migrated"]


def read(answer: httpx.Response) -> list[dict[str, str]]:
    assert answer.status_code == 200 and "attachment" in answer.headers["content-disposition"]
    return list(csv.DictReader(StringIO(answer.text, newline="")))


async def test_decisions_are_downloaded_as_they_are_filtered(admin: AdminServices, client: httpx.AsyncClient) -> None:
    """There are more than a page of them, newest first, with amounts as numbers, times in UTC, and empty cells for
    unknown values.
    """
    write(admin, *(recent(n, route="code" if n % 2 else "auto") for n in range(2400)))
    rows = read(await client.get("/decisions.csv"))
    assert len(rows) == 2400 and rows[0]["id"] == "dec_0" and rows[0]["time"].endswith("Z")
    assert float(rows[0]["cost_usd"]) == 1e-6
    page = await client.get("/decisions", params={"route": "code"})
    assert "/decisions.csv?route=code" in page.text
    assert {row["route"] for row in read(await client.get("/decisions.csv?route=code"))} == {"code"}
    assert (await client.get("/decisions.csv?outcome=odd")).status_code == 400


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t=", "\r=", "\n=", "\uff1d", "\uff20"])
async def test_no_cell_is_a_formula(admin: AdminServices, client: httpx.AsyncClient, sign: str) -> None:
    """That holds for any name of a route; some spreadsheets also read full-width signs."""
    write(admin, recent(1, route=f"{sign}HYPERLINK(1)"))
    (row,) = read(await client.get("/decisions.csv"))
    assert row["route"].startswith("'")


async def test_the_audit_log_is_downloaded_completely(admin: AdminServices, client: httpx.AsyncClient) -> None:
    """Lines of equal times are included, and no cell is a formula."""
    notes = [AuditRecord(id=f"aud_{n}", time_s=NOON_S, actor="me", action="key.create", target="=1+1", detail={"n": n})
             for n in range(1005)]  # fmt: skip
    write(admin, *notes)
    rows = read(await client.get("/audit.csv"))
    assert {row["id"] for row in rows} == {one.id for one in notes} and len(rows) == 1005
    assert {row["target"] for row in rows} == {"'=1+1"} and rows[0]["time"] == "2023-11-15T12:00:00Z"
    assert read(await client.get("/audit.csv?action=key.revoke")) == []
    assert "2023-11-15 12:00:00 UTC" in (await client.get("/audit")).text
