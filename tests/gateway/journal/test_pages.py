"""The queries of the admin pages to the journal, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading

import pytest

from gateway.journal import recent
from gateway.journal.insights import insight, insights_of, keep_insight
from gateway.journal.recent import latest_scored
from gateway.journal.retention import forget_old
from gateway.journal.search import DecisionFilter, search
from gateway.journal.store import SettingConflict, Store
from gateway.journal.sums import merged, quantile_s, sums, sums_by_tenant
from gateway.journal.write import write_records
from gateway.learn.rounds import is_round
from tests.gateway.journal.records import KEEP_DAYS, NOON_S, decision, feedback

DAY_S = NOON_S // 86400 * 86400


def write(store: Store) -> None:
    records = [
        decision(n, tenant="other" if n % 3 == 0 else "acme", route="code" if n % 5 == 0 else "auto",
                 status=500 if n % 7 == 0 else 200, cost_nanousd=n)
        for n in range(60)
    ]  # fmt: skip
    with store.engine.begin() as connection:
        write_records(connection, [*records, feedback(3, 0.5, tenant="other"), feedback(4, None, label="nice")])


def test_a_routes_latest_decisions_have_their_scores(store: Store) -> None:
    """The newest ones are returned, oldest first, each with the score that counts."""
    write(store)
    found = latest_scored(store.engine, "auto", limit=1000)
    assert [record.id for record, _ in found] == [f"dec_{n}" for n in range(60) if n % 5]
    assert {record.id: score for record, score in found if score is not None} == {"dec_3": 0.5}
    assert [record.id for record, _ in latest_scored(store.engine, "auto", limit=3)] == ["dec_57", "dec_58", "dec_59"]
    assert len(latest_scored(store.engine, "auto", limit=99, since_s=NOON_S + 55)) == 4


def test_reading_stops_after_enough_rounds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are read from the latest back until enough decisions can be learned from; the others on these pages are
    returned, too.
    """
    monkeypatch.setattr(recent, "PAGE_ROWS", 4)
    records = [decision(n, route="auto", model="small" if n % 2 else "") for n in range(60)]
    with store.engine.begin() as connection:
        write_records(connection, records)
    found = [record for record, _ in latest_scored(store.engine, "auto", limit=50, rounds=5)]
    assert sum(map(is_round, found)) == 6 and [record.id for record in found] == [f"dec_{n}" for n in range(48, 60)]
    assert len(latest_scored(store.engine, "auto", limit=10, rounds=99)) == 10


def test_a_search_needs_an_index_only(store: Store) -> None:
    """Each filter alone and all together give decisions newest first."""
    write(store)
    both = search(store, DecisionFilter(tenant="other", outcome="error"), None, 100)
    assert [row["id"] for row in both.rows] == [f"dec_{n}" for n in range(59, -1, -1) if n % 21 == 0]
    alone = search(store, DecisionFilter(route="code"), None, 2)
    assert [row["id"] for row in alone.rows] == ["dec_55", "dec_50"] and alone.after == (NOON_S + 50, "dec_50")
    rest = search(store, DecisionFilter(route="code"), alone.after, 100)
    assert len(rest.rows) == 10 and rest.after is None
    dear = search(store, DecisionFilter(min_cost_usd=58e-9), None, 100)
    assert [row["cost_nanousd"] for row in dear.rows] == [59, 58]


def test_sums_agree_in_any_grouping(store: Store) -> None:
    """By route, by tenant and in total they are the same."""
    write(store)
    span = (86400, DAY_S, DAY_S + 86400)
    (total,) = sums(store, *span)
    assert (total["requests"], total["errors"], total["cost_nanousd"]) == (60, 9, sum(range(60)))
    for column in ("start_s", "route", "model"):
        assert merged(sums(store, *span, by=(column,))) == total
    by_route = {row["route"]: row["requests"] for row in sums(store, *span, by=("route",))}
    assert by_route == {"auto": 48, "code": 12}
    by_tenant = {row["tenant"]: row["requests"] for row in sums_by_tenant(store, *span)}
    assert by_tenant == {"acme": 40, "other": 20}
    assert sums(store, *span, tenant="other", route="code", names=("requests",)) == [{"requests": 4}]
    found = quantile_s(total, 0.5)
    assert found is not None and 0.15 < found < 0.25
    (nothing,) = sums(store, 60, 0, 60)
    assert nothing["requests"] == 0 and quantile_s(nothing, 0.5) is None


def test_an_insight_replaces_the_one_before(store: Store) -> None:
    """It can be read alone or with all of its kind."""
    keep_insight(store, "frontier", "auto", {"points": [1]})
    keep_insight(store, "frontier", "auto", {"points": [2]})
    keep_insight(store, "labels", "auto", [])
    found = insight(store, "frontier", "auto")
    assert found is not None and found[1] == {"points": [2]}
    assert list(insights_of(store, "frontier")) == ["auto"] and insight(store, "frontier", "code") is None


def test_of_concurrent_writers_of_one_version_one_succeeds(store: Store) -> None:
    """Each expects the same version to be in force; the others get a conflict and leave no audit line."""
    told: list[str] = []

    def one(number: int) -> None:
        try:
            store.save_setting("route:auto", {"n": number}, f"op {number}", expected=0)
            told.append("done")
        except SettingConflict:
            told.append("conflict")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["conflict", "conflict", "conflict", "done"]
    assert len(store.setting_versions("route:auto")) == len(store.audit_log()) == 1
    store.save_setting("route:auto", None, "x", expected=1)
    store.save_setting("tenant:50%", {"b": 1}, "x", expected=0)
    assert store.latest_settings() == {"route:auto": None, "tenant:50%": {"b": 1}}
    assert store.setting_numbers("tenant:5") == {"tenant:50%": 1} and store.setting_numbers("%") == {}


@pytest.mark.parametrize(("age_days", "spans"), [(0, {60, 3600, 86400}), (3, {3600, 86400}), (70, {86400})])
def test_sums_are_kept_by_their_resolution(store: Store, age_days: int, spans: set[int]) -> None:
    """Minutes are kept for two days, hours for two months, and days for ever."""
    write(store)
    forget_old(store.engine, NOON_S + age_days * 86400 + 60, KEEP_DAYS)
    kept = {span for span in (60, 3600, 86400) if sums(store, span, 0, 2**40)[0]["requests"]}
    assert kept == spans
