from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from gateway.journal.chain import ERASED_AFTER_S
from gateway.journal.events import Events
from gateway.journal.record import (
    AuditRecord,
    DecisionRecord,
    FeedbackRecord,
    JobStartRecord,
    KeyRecord,
    Record,
    ResponseRecord,
)
from gateway.journal.retention import forget_old
from gateway.journal.rollup_tables import sessions
from gateway.journal.search import DecisionFilter, search
from gateway.journal.store import RouterVersion, Store, open_store
from gateway.journal.tables import decisions, job_items, responses, spool_offsets
from gateway.journal.write import write_records
from gateway.keys import hash_key, revoked
from tests.gateway.journal.records import KEEP_DAYS, NOON_S, attempt, decision, feedback
from tests.until import until


def write(store: Store, *records: Record) -> None:
    with store.engine.begin() as connection:
        write_records(connection, records)


def test_a_decision_is_found_by_any_of_its_ids(store: Store) -> None:
    """Decision, response and request id find the record that was written."""
    record = decision(
        1, vector=b"\x00\x3c\x01", prompt_text='quotes " and \x00 and 🙂', thresholds=(0.5, None)
    )
    write(store, record)
    assert store.decision("dec_1") == record
    assert store.decision("chatcmpl-1") == record
    assert store.decision("req_1") == record
    assert store.decision("dec_2") is None


def test_unknown_numbers_are_null(store: Store) -> None:
    """NaN means unknown, and JSON has no NaN."""
    write(store, decision(1, latency_s=0.1, ttft_s=math.nan))
    found = store.decision("dec_1")
    assert found is not None and found.ttft_s is None


def test_zero_bytes_are_removed_from_columns(store: Store) -> None:
    """PostgreSQL's text can't hold them; the record itself keeps what was sent."""
    record = decision(1, request_id="re\x00q", model="a\x00", answered_model="a\x00", tenant="ac\x00me")
    write(store, record)
    found = store.decision("req", tenant="acme")
    assert found == record
    assert [row["model"] for row in store.stats(0.0, 2 * NOON_S)] == ["a"]


def test_a_decision_of_another_tenant_is_not_found(store: Store) -> None:
    """A tenant finds no decision of another."""
    write(store, decision(1))
    assert store.decision("dec_1", tenant="other") is None
    assert store.decision("chatcmpl-1", tenant="other") is None
    assert store.decision("dec_1", tenant="acme") is not None


def test_writing_twice_changes_nothing(store: Store) -> None:
    """Counters count a decision once, however often it is written, in one batch, a long one too, or in several."""
    write(store, decision(1), decision(1))
    write(store, *[decision(1), decision(2)] * 80)
    (row,) = store.stats(NOON_S - 60, NOON_S + 60)
    assert (row["requests"], row["cost_nanousd"]) == (2, 2000)
    (account,) = store.spend_since(NOON_S)
    assert (account["requests"], account["cost_nanousd"]) == (2, 2000)


def test_pages_of_decisions_have_each_once(store: Store) -> None:
    """Keyset pages have all decisions newest first, even where times are equal."""
    write(store, *(decision(number, time_s=NOON_S + number // 3) for number in range(10)))
    page = search(store, DecisionFilter(), None, 3)
    seen = [row["id"] for row in page.rows]
    while page.after is not None:
        page = search(store, DecisionFilter(), page.after, 3)
        seen += [row["id"] for row in page.rows]
    assert sorted(seen) == sorted(f"dec_{number}" for number in range(10))
    assert len(seen) == 10
    assert seen[0] == "dec_9"


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (DecisionFilter(route="code"), ["dec_2"]),
        (DecisionFilter(tenant="b"), ["dec_3"]),
        (DecisionFilter(errors_only=True), ["dec_3"]),
        (DecisionFilter(until_s=NOON_S + 2), ["dec_1"]),
        (DecisionFilter(answered_model="small", key_id="key_1"), ["dec_3", "dec_2", "dec_1"]),
    ],
)
def test_filters_narrow_the_list(store: Store, asked: DecisionFilter, found: list[str]) -> None:
    """Each field of the filter selects by its own column."""
    write(store, decision(1), decision(2, route="code"), decision(3, status=502, tenant="b"))
    assert [row["id"] for row in search(store, asked, None, 100).rows] == found


def test_the_counters_hold_what_the_dashboard_shows(store: Store) -> None:
    """There are requests, errors, hits, escalations, cost, tokens and latencies per minute, route and model."""
    write(
        store,
        decision(1),
        decision(2, status=502),
        decision(3, cache="semantic", attempts=(), saved_nanousd=700, cost_nanousd=0, latency_s=0.001),
        decision(
            4, plan=("small", "large"), answered_model="large", attempts=(attempt("small"), attempt("large"))
        ),
    )
    small, large = sorted(store.stats(NOON_S, NOON_S + 60), key=lambda row: row["model"], reverse=True)
    assert (small["requests"], small["errors"], small["cache_hits"], small["saved_nanousd"]) == (3, 1, 1, 700)
    assert (small["latency_00"], small["latency_04"]) == (1, 2)
    assert (large["escalations"], large["input_tokens"], large["output_tokens"]) == (1, 24, 10)
    assert sum(row["requests"] for row in store.stats(NOON_S, NOON_S + 3600, step_s=3600)) == 4


def test_stats_of_a_longer_step_sum_the_minutes(store: Store) -> None:
    """An hour is the sum of its minutes."""
    write(store, *(decision(number, time_s=NOON_S + 60 * number) for number in range(5)))
    (row,) = store.stats(NOON_S, NOON_S + 3600, step_s=3600)
    assert row["requests"] == 5
    assert row["time_s"] == NOON_S


def test_spend_is_summed_from_an_hour_on(store: Store) -> None:
    """Earlier spending is left out, and accounts are separate."""
    write(store, decision(1, time_s=NOON_S - 3600), decision(2), decision(3, key_id="key_2", cost_nanousd=5))
    rows = store.spend_since(NOON_S + 30)
    assert [(row["key_id"], row["cost_nanousd"]) for row in rows] == [("key_1", 1000), ("key_2", 5)]


def test_feedback_finds_its_decision_by_any_id(store: Store) -> None:
    """It may have a response or request id, and may be shipped before its decision."""
    by_response = feedback(1, 1.0, decision_id="", response_id="chatcmpl-1")
    by_request = feedback(2, 0.0, decision_id="", request_id="req_2")
    write(store, by_response, decision(1), by_request)
    write(store, decision(2))
    assert [row["decision_id"] for row in store.feedback()] == ["dec_2", "dec_1"]


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("feedback_first", [True, False])
async def test_feedback_finds_a_decision_that_another_replica_stores_at_the_same_time(
    store: Store, feedback_first: bool
) -> None:
    """Neither transaction sees the other's rows, and still the feedback is attached, and not to another tenant's."""
    decisions_of = [decision(1), decision(2)]
    scores = [feedback(1, 1.0, decision_id="", response_id="chatcmpl-1"), feedback(2, 0.0, tenant="thief")]
    one, other = (scores, decisions_of) if feedback_first else (decisions_of, scores)
    with ThreadPoolExecutor(1) as replica, store.engine.connect() as connection:
        with connection.begin():
            write_records(connection, one)
            second = replica.submit(write, store, *other)
            await until(lambda: second.done() or waits(store))
        second.result()
    assert [row["score"] for row in store.feedback(decision_id="dec_1")] == [1.0]
    assert store.feedback(decision_id="dec_2") == []


def waits(store: Store) -> bool:
    """Whether some transaction waits for a lock."""
    with store.engine.connect() as connection:
        return bool(connection.execute(sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar())


def test_pages_of_feedback_and_audit_have_each_once(store: Store) -> None:
    """Rows of one moment at the end of a page are not skipped by the next page."""
    notes = [AuditRecord(id=f"aud_{i}", time_s=NOON_S, actor="me", action="key.create", target="") for i in range(5)]
    write(store, *(feedback(i, 1.0, time_s=NOON_S) for i in range(5)), *notes)
    for rows_of in (store.feedback, store.audit_log):
        seen, before = [], None
        while rows := rows_of(before=before, limit=2):
            seen += [row["id"] for row in rows]
            before = rows[-1]["time_s"], rows[-1]["id"]
        assert len(seen) == len(set(seen)) == 5


def test_feedback_of_another_tenant_is_not_attached(store: Store) -> None:
    """Clients choose request ids, so two tenants may use the same one."""
    stranger = feedback(1, 0.0, decision_id="", request_id="req_1", tenant="other")
    write(store, decision(1), stranger)
    write(store, decision(2, request_id="req_1", tenant="third"))
    assert [row["decision_id"] for row in store.feedback()] == [None]


@pytest.mark.parametrize("early", [False, True])
def test_a_guessed_decision_id_cannot_be_scored(store: Store, early: bool) -> None:
    """Ids can be guessed: another tenant's feedback isn't attached, even if it came before the decision."""
    stranger, own = feedback(1, 0.0, tenant="other"), feedback(2, 1.0, decision_id="dec_1")
    for record in (stranger, own, decision(1)) if early else (decision(1), stranger, own):
        write(store, record)
    assert {row["id"]: row["decision_id"] for row in store.feedback()} == {"fb_1": None, "fb_2": "dec_1"}


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("names", [{}, {"decision_id": "", "request_id": "req_1"}])
def test_the_operator_may_score_any_tenants_answer(store: Store, early: bool, names: dict[str, str]) -> None:
    """Feedback without a tenant gets the tenant of its decision, whichever id it has."""
    said = feedback(1, 0.5, tenant="", **names)
    for record in (said, decision(1)) if early else (decision(1), said):
        write(store, record)
    (row,) = store.feedback(decision_id="dec_1")
    assert (row["id"], row["tenant"], row["score"]) == ("fb_1", decision(1).tenant, 0.5)


def test_later_feedback_of_the_same_id_replaces_the_earlier(store: Store) -> None:
    """The later one counts, whichever is shipped first."""
    write(store, feedback(1, 0.2, time_s=NOON_S + 9))
    write(store, feedback(1, 1.0, time_s=NOON_S + 3))
    (row,) = store.feedback(decision_id="dec_1")
    assert (row["id"], row["score"], row["time_s"]) == ("fb_1", 0.2, NOON_S + 9)


def test_a_deletion_of_a_response_is_final(store: Store) -> None:
    """Stored responses are visible to their tenant only, and a late copy doesn't restore a deleted one."""
    made = ResponseRecord(id="resp_1", time_s=1.0, tenant="acme", input=b'["hi"]', output=b'{"id":"resp_1"}')
    gone = ResponseRecord(id="resp_1", time_s=2.0, tenant="acme", deleted=True)
    write(store, made)
    assert store.response("resp_1", "acme") == made
    assert store.response("resp_1", "other") is None
    write(store, gone)
    write(store, made)
    found = store.response("resp_1", "acme")
    assert found is not None and found.deleted
    forget_old(store.engine, 2.0 + ERASED_AFTER_S + 1, KEEP_DAYS)
    found = store.response("resp_1", "acme")
    assert found is not None and found.deleted and (found.input, found.output) == (b"", b"")


def turn(number: int, after: int | None = None, **changes: Any) -> ResponseRecord:
    told = {"input": b'["%d"]' % number, "output": b'{"output":["said %d"]}' % number}
    previous = "" if after is None else f"resp_{after}"
    return ResponseRecord(
        **{"id": f"resp_{number}", "time_s": float(number), "tenant": "acme", "previous_response_id": previous, **told,
           **changes}
    )  # fmt: skip


def ids_of(store: Store) -> set[str]:
    with store.engine.connect() as connection:
        return set(connection.execute(sa.select(responses.c.id)).scalars())


def test_a_chain_is_read_in_one_query(store: Store) -> None:
    """It may be of any length, contains its tenant's turns only, and a cycle ends it."""
    write(store, *(turn(number, number - 1 if number else None) for number in range(500)), turn(900, 7))
    queries: list[str] = []
    sa.event.listen(store.engine, "before_cursor_execute", lambda *told: queries.append(told[2]))
    chain = store.response_chain("resp_499", "acme")
    assert len(queries) == 1 and set(chain) == {f"resp_{number}" for number in range(500)}
    assert len(store.response_chain("resp_900", "acme")) == 9 and not store.response_chain("resp_1", "other")
    write(store, turn(600, 601), turn(601, 600), turn(700, 3, tenant="other"))
    assert set(store.response_chain("resp_600", "acme")) == {"resp_600", "resp_601"}
    assert set(store.response_chain("resp_700", "other")) == {"resp_700"}


def test_a_deleted_turn_stays_for_its_successors(store: Store) -> None:
    """It is hidden, and its content is removed once no conversation needs it; a late copy is hidden, too."""
    gone = [ResponseRecord(id=f"resp_{n}", time_s=50.0 + n, tenant="acme", deleted=True) for n in range(4)]
    write(store, turn(0), turn(1, 0), gone[0])
    write(store, gone[2])
    write(store, turn(2, 1), turn(3, 2), gone[1])
    later = 100.0 + ERASED_AFTER_S
    forget_old(store.engine, later, KEEP_DAYS)
    chain = store.response_chain("resp_3", "acme")
    assert [chain[f"resp_{n}"].deleted for n in range(4)] == [True, True, True, False]
    assert all(one.input for one in chain.values())
    write(store, gone[3])
    forget_old(store.engine, 60.0, KEEP_DAYS)
    assert store.response_chain("resp_3", "acme")["resp_0"].input
    forget_old(store.engine, later, KEEP_DAYS)
    with store.engine.connect() as connection:
        assert set(connection.execute(sa.select(responses.c.input, responses.c.output)).all()) == {("", "")}


def test_retention_keeps_the_turns_of_a_used_conversation(store: Store) -> None:
    """Old turns stay; unused branches are deleted, and everything once the last turn is old."""
    day_s = 86400.0
    old = [turn(n, n - 1 if n else None) for n in range(1200)]
    write(store, *old, turn(1200, 5), turn(1201, 1200), turn(2000, 9, time_s=40 * day_s))
    assert forget_old(store.engine, 41 * day_s, KEEP_DAYS) == 1202 - 10
    assert ids_of(store) == {f"resp_{n}" for n in (*range(10), 2000)}
    assert forget_old(store.engine, 71 * day_s, KEEP_DAYS) == 11


def test_each_kind_of_row_has_its_time(store: Store) -> None:
    """Events go with the responses, spools' offsets after a week, sessions as they expire, counters after 400 days."""
    day_s, events = 86400.0, Events(store.engine)
    write(store, decision(1, time_s=0.0), decision(2, time_s=20 * day_s))
    events.add("resp_1", "acme", 0, [b"old"], 0.0, last=True)
    events.add("resp_2", "acme", 0, [b"new"], 20 * day_s, last=True)
    session = {"user_name": "u", "role": "admin", "created_s": 0.0}
    with store.engine.begin() as connection:
        for id, until_s in (("over", 34.9 * day_s), ("open", 35.1 * day_s)):
            connection.execute(sa.insert(sessions), {**session, "id": id, "expires_s": until_s})
        for segment, at_s in (("old", 27.9 * day_s), ("new", 28.1 * day_s)):
            connection.execute(sa.insert(spool_offsets), {"segment": segment, "shipped_bytes": 1, "time_s": at_s})

    def left() -> list[object]:
        with store.engine.connect() as connection:
            columns = sessions.c.id, spool_offsets.c.segment
            return [*(connection.execute(sa.select(one)).scalar() for one in columns), len(store.stats(0, 9e9))]

    assert forget_old(store.engine, 35 * day_s, KEEP_DAYS) == 1
    assert [events.known(id, "acme") for id in ("resp_1", "resp_2")] == [(0, False), (1, True)]
    assert left() == ["open", "new", 2]
    forget_old(store.engine, 401 * day_s, KEEP_DAYS)
    assert left() == [None, None, 1]


def test_keys_are_stored_hashed_and_changes_audited(store: Store) -> None:
    """The plaintext is nowhere, a name is unique among valid keys, and each change adds an audit line."""
    key = KeyRecord(id="key_1", name="ci", key_hash=hash_key("hg-secret"), prefix="hg-s", created_s=1.0)
    store.add_key(key, actor="admin")
    with pytest.raises(ValueError, match="ci"):
        store.add_key(KeyRecord(id="key_2", name="ci", key_hash="x", prefix="", created_s=2.0), actor="admin")
    assert store.keys() == [key] == [store.key("key_1")]
    assert store.change_key("key_1", revoked, actor="admin") == store.key("key_1")
    assert store.change_key("key_1", revoked, actor="admin") == store.key("key_1")
    assert store.change_key("key_2", revoked, actor="admin") is None
    assert store.keys(revoked=False) == []
    assert [row["action"] for row in store.audit_log()] == ["key.revoke", "key.create"]
    assert "hg-secret" not in str(store.audit_log()) + str(store.keys())


def test_two_replicas_cannot_make_keys_of_one_name(store: Store, database_url: str) -> None:
    """Both look before either has made its key; the second waits and gets an error."""

    both = Barrier(2)

    def dawdle(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith("INSERT INTO keys"):
            time.sleep(0.3)

    def make(number: int) -> str:
        other = open_store(database_url)
        sa.event.listen(other.engine, "before_cursor_execute", dawdle)
        try:
            both.wait()
            other.add_key(KeyRecord(f"key_{number}", "ci", f"hash {number}", "hg-", NOON_S), "me")
        except ValueError as fault:
            return str(fault)
        finally:
            other.close()
        return "made"

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(make, range(2)))
    assert said == ["a key named 'ci' exists", "made"]
    assert len(store.keys()) == 1


def test_a_change_of_a_key_never_undoes_its_revocation(store: Store) -> None:
    """The change began before the revocation and ends after it; both are stored."""
    store.add_key(KeyRecord(id="key_1", name="ci", key_hash="x", prefix="", created_s=1.0), actor="admin")

    def slowly(key: KeyRecord) -> KeyRecord:
        if key.revoked_s is None:
            store.change_key("key_1", revoked, actor="somebody else")
        return msgspec.structs.replace(key, rpm=5)

    key = store.change_key("key_1", slowly, actor="admin")
    assert key is not None and key.rpm == 5 and key.revoked_s is not None and store.key("key_1") == key
    assert store.keys(revoked=False) == []
    assert [row["action"] for row in store.audit_log()] == ["key.change", "key.revoke", "key.create"]


def test_settings_keep_every_version(store: Store) -> None:
    """A saved setting adds a version, and older ones can be read."""
    assert store.setting("routes") is None
    assert store.save_setting("routes", {"auto": 0.5}, "admin") == 1
    assert store.save_setting("routes", {"auto": 0.7}, "admin") == 2
    assert store.setting("routes") == {"auto": 0.7}
    assert store.setting("routes", version=1) == {"auto": 0.5}
    assert [row["version"] for row in store.setting_versions("routes")] == [2, 1]


def test_at_most_one_version_of_a_router_is_live(store: Store) -> None:
    """Promoting one version retires the one before."""
    store.save_router_version(RouterVersion("knn", "1", 1.0, "live"), "admin")
    store.save_router_version(RouterVersion("knn", "2", 2.0, "candidate", metrics={"aiq": 0.7}), "admin")
    store.save_router_version(RouterVersion("knn", "2", 2.0, "live", metrics={"aiq": 0.7}), "admin")
    states = [(version.version, version.state) for version in store.router_versions("knn")]
    assert states == [("2", "live"), ("1", "retired")]
    assert store.router_versions("knn")[0].metrics == {"aiq": 0.7}


def test_retention_keeps_spending(store: Store) -> None:
    """Old decisions, feedback and responses are deleted; spending, keys and audit lines stay."""
    write(
        store,
        *(decision(number) for number in range(5)),
        feedback(1, 1.0),
        ResponseRecord(id="resp_1", time_s=NOON_S, tenant="acme"),
        AuditRecord(id="a", time_s=NOON_S, actor="x", action="y"),
        decision(99, time_s=NOON_S + 40 * 86400),
    )
    assert forget_old(store.engine, NOON_S + 41 * 86400, KEEP_DAYS) == 7
    assert [row["id"] for row in search(store, DecisionFilter(), None, 100).rows] == ["dec_99"]
    assert sum(row["cost_nanousd"] for row in store.spend_since(0)) == 6000
    assert len(store.audit_log()) == 1


def test_dashboard_queries_use_indexes(store: Store) -> None:
    """No query of the list or the look-ups reads all decisions."""
    write(store, *(decision(number) for number in range(3)))
    with store.engine.connect() as connection:
        if connection.dialect.name != "sqlite":
            connection.exec_driver_sql("SET enable_seqscan = off")
        explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        for column in ("id", "response_id", "request_id"):
            query = f"{explain} SELECT payload FROM decisions WHERE {column} = 'x'"
            plan = str(connection.exec_driver_sql(query).all())
            assert "SCAN decisions" not in plan and "Seq Scan" not in plan
        listing = sa.select(decisions.c.id).where(decisions.c.route == "auto", decisions.c.time_s >= 1.0)
        text = listing.compile(connection, compile_kwargs={"literal_binds": True})
        plan = str(connection.exec_driver_sql(f"{explain} {text}").all())
        assert "decisions_" in plan
        for old in ("time_s < 1.0 LIMIT 9", "(time_s, id) > (1.0, '') ORDER BY time_s, id LIMIT 9"):
            plan = str(connection.exec_driver_sql(f"{explain} SELECT id FROM decisions WHERE {old}").all())
            assert "decisions_search" in plan and "SORT" not in plan.upper()


def test_every_kind_of_record_is_stored() -> None:
    """Each kind of the union is handled by write_records."""
    assert set(Record.__args__) == {DecisionRecord, FeedbackRecord, ResponseRecord, AuditRecord, JobStartRecord}


def test_a_jobs_prompt_is_counted_once_and_keeps_its_first_answer(store: Store) -> None:
    """A start, a lost attempt, an answer that was shipped twice and a late one make one row with every call's cost
    once.
    """
    replace = msgspec.structs.replace
    started = JobStartRecord(job="job_1", index=3, time_s=NOON_S, worst_nanousd=900)
    lost = replace(decision(1), job="job_1", job_index=3, job_final=False, status=429, cost_nanousd=5)
    answered = replace(decision(2), job="job_1", job_index=3, status=200, cost_nanousd=70, job_answer=b"one")
    late = replace(decision(3), job="job_1", job_index=3, status=200, cost_nanousd=80, job_answer=b"two")
    other = JobStartRecord(job="job_2", index=0, time_s=NOON_S)
    seen = []
    batches: list[list[Record]] = [[started], [lost], [started, other, answered], [answered], [late, started]]
    for batch in batches:
        with store.engine.begin() as connection:
            write_records(connection, batch)
            row = connection.execute(sa.select(job_items).where(job_items.c.job == "job_1")).mappings().one()
            seen.append((row["state"], row["cost_nanousd"], row["worst_nanousd"], row["answer"]))
    done = ("done", 75, 0, b"one")
    assert seen == [("started", 0, 900, b""), ("open", 5, 0, b""), done, done, ("done", 155, 0, b"one")]
    with store.engine.connect() as connection:
        payloads = connection.execute(sa.select(decisions.c.payload)).scalars().all()
    assert len(payloads) == 3 and not any("job_answer" in payload for payload in payloads)
