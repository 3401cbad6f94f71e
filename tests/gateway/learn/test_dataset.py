"""Rounds and training data from decisions and their feedback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from gateway.journal import recent
from gateway.journal.recent import latest_scored
from gateway.journal.record import DecisionRecord, EvidenceRecord, FeedbackRecord
from gateway.journal.schema import migrate, open_engine
from gateway.journal.store import open_store
from gateway.journal.tables import feedback
from gateway.journal.write import write_records
from gateway.learn.dataset import (
    NothingLogged,
    Scored,
    halves_of_queries,
    log_of,
    log_of_outcomes,
    main_axes,
    read_log,
    scored_by_checks,
    training_data,
)
from gateway.learn.rounds import failed_check
from routers.outcomes import laid_out
from routers.simple import Weighted
from tests.gateway.learn.world import Town

EVEN = Weighted({"small": 1.0, "middle": 1.0, "large": 1.0})


def decisions(n: int = 60, seed: int = 0, labelled: float = 1.0) -> list[Scored]:
    return Town(seed).decisions(EVEN, n, labelled=labelled)


def shown(record: DecisionRecord, **evidence: Any) -> DecisionRecord:
    attempt = replace(record.attempts[0], evidence=EvidenceRecord(**evidence))
    return replace(record, attempts=(attempt,))


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        ({"schema_valid": False}, "invalid schema"),
        ({"tools_parse": False}, "tool call does not parse"),
        ({"refused": True}, "refused"),
        ({"schema_valid": True, "tools_parse": True, "refused": False}, ""),
        ({}, ""),
    ],
)
def test_each_check_gives_its_verdict(evidence: dict[str, object], said: str) -> None:
    """An answer's own evidence is read as a verdict."""
    record, _ = decisions(1)[0]
    assert failed_check(shown(record, **evidence)) == said
    assert failed_check(replace(record, status=502)) == "no answer"


def test_feedback_outranks_checks() -> None:
    """An explicit score stays, whatever the checks found."""
    rows = [(shown(record, refused=True), 1.0) for record, _ in decisions(20)]
    assert all(score == 1.0 for _, score in scored_by_checks(rows))


def test_a_repeated_question_counts_against_the_first_answer() -> None:
    """It is the same question of the same caller within two minutes; the last answer isn't affected."""
    record = shown(decisions(1)[0][0], checks_passed=True)
    soon, later = replace(record, time_s=record.time_s + 5), replace(record, time_s=record.time_s + 5000)
    other = replace(soon, tenant="another")
    assert [score for _, score in scored_by_checks([(record, None), (soon, None)])] == [0.0, 1.0]
    assert [score for _, score in scored_by_checks([(record, None), (later, None)])] == [1.0, 1.0]
    assert [score for _, score in scored_by_checks([(record, None), (other, None)])] == [1.0, 1.0]


@pytest.mark.parametrize("evidence", [{}, {"refused": False}])
def test_passed_checks_alone_are_no_score(evidence: dict[str, object]) -> None:
    """Without feedback, and without a check of the content, an answer's quality is unknown."""
    rows = [(shown(record, **evidence), None) for record, _ in decisions(9)]
    rows.append((replace(rows[0][0], id="dec_failed", status=502), None))
    assert not any(score is not None for _, score in scored_by_checks(rows))


def test_checks_of_the_content_score_without_feedback() -> None:
    found = scored_by_checks([(shown(record, schema_valid=i > 2), None) for i, (record, _) in enumerate(decisions(9))])
    assert [score for _, score in found] == [0.0] * 3 + [1.0] * 6


def test_failed_checks_do_not_outnumber_feedback() -> None:
    """If a tenth of the answers is scored, about a tenth of the failed checks counts, so the mean score doesn't change.
    """
    rows: list[Scored] = []
    for i, (record, _) in enumerate(decisions(2000)):
        broken = i % 4 == 0
        said = 1.0 if not broken and i % 10 == 1 else None
        rows.append((replace(record, status=502) if broken else record, said))
    scores = [score for _, score in scored_by_checks(rows) if score is not None]
    assert np.mean(scores) == pytest.approx(0.75, abs=0.06)


def test_late_scores_are_read(tmp_path: Path) -> None:
    """With 1,000 rounds since the latest scored one, the log has the scored ones and the latest of the later ones."""
    store = open_store(f"sqlite:///{tmp_path}/journal.db")
    records = [record for record, _ in decisions(1600)]
    said = [FeedbackRecord(id=one.id, time_s=9e9, decision_id=one.id, tenant="t", score=1.0) for one in records[:600]]
    with store.engine.begin() as connection:
        write_records(connection, [*records, *said])
    log = read_log(store.engine, route="auto", limit=300)
    store.close()
    assert log.labelled.tolist() == [True] * 300 + [False] * 300
    assert [one.id for one in log.records] == [one.id for one in (*records[300:600], *records[-300:])]


def test_a_log_is_read_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost doesn't grow with the journal: no record of an older decision is read, whether scores are late or long
    ago.
    """
    read: list[str] = []

    def decoded(payload: str) -> DecisionRecord:
        read.append(payload)
        return decode(payload)

    decode = recent._decode
    monkeypatch.setattr(recent, "_decode", decoded)
    store = open_store(f"sqlite:///{tmp_path}/journal.db")
    records = [replace(record, time_s=float(i)) for i, (record, _) in enumerate(decisions(3000))]
    said = [FeedbackRecord(id=one.id, time_s=9e9, decision_id=one.id, tenant="t", score=1.0) for one in records[::2]]
    with store.engine.begin() as connection:
        write_records(connection, [*records, *said])
    assert [one.time_s for one in read_log(store.engine, route="auto", limit=100).records] == [*range(2899, 3000)]
    assert 200 <= len(read) <= 200 + recent.PAGE_ROWS
    with store.engine.begin() as connection:
        connection.execute(sa.delete(feedback).where(feedback.c.id != records[0].id))
    read.clear()
    log = read_log(store.engine, route="auto", limit=100)
    store.close()
    assert [one.time_s for one in log.records] == [0.0, *range(2900, 3000)] and log.labelled.sum() == 1
    assert 200 <= len(read) <= 200 + recent.PAGE_ROWS


def test_decisions_without_a_choice_are_no_rounds() -> None:
    """Cache hits, clients that left and choices without probabilities are left out and counted."""
    (a, _), (b, _), (c, _), (d, _) = decisions(4)
    rows = [(replace(a, cache="hit"), 1.0), (replace(b, status=499), 1.0), (replace(c, candidates=()), 1.0), (d, 1.0)]
    log = log_of(rows)
    assert len(log) == 1 and log.left_out == 3
    with pytest.raises(NothingLogged, match="3 request"):
        log_of(rows[:3])


def test_planned_decisions_of_a_batch_job_are_no_rounds() -> None:
    """They weren't drawn, so they say nothing about other settings of the route."""
    rows = decisions(20)
    mixed = rows + [(replace(record, id=f"job_{i}", job="batch_1"), score) for i, (record, score) in enumerate(rows)]
    assert len(log_of(mixed)) == 20


def test_logged_probabilities_are_the_routers() -> None:
    """Every row sums to 1, and the chosen model's probability is the recorded propensity."""
    log = log_of(decisions(40))
    assert np.allclose(log.logged.sum(1), 1.0)
    recorded = np.array([record.propensity for record in log.records], float)
    assert np.allclose(log.rounds(log.cost_usd).propensity, recorded)


def test_training_data_credits_the_model_that_answered() -> None:
    """An escalated answer scores the model that gave it, at that attempt's cost."""
    rows = decisions(30)
    record, _ = rows[0]
    second = replace(record.attempts[0], model="large", cost_nanousd=7_000)
    rows[0] = (replace(record, model="small", answered_model="large", attempts=(record.attempts[0], second)), 1.0)
    data, x = training_data(log_of(rows))
    assert data.scores[0, data.models.index("large")] == 1.0 and np.isfinite(data.scores[0]).sum() == 1
    assert data.cost_usd[0, data.models.index("large")] == pytest.approx(7e-6)
    assert x.shape[0] == 30


def test_equal_queries_are_in_one_half() -> None:
    """Nothing is evaluated on a query that was trained on."""
    log = log_of([(replace(record, prompt_text=f"q{i % 9}"), score) for i, (record, score) in enumerate(decisions(90))])
    first = halves_of_queries(log)
    one, two = log.rows(first), log.rows(~first)
    assert {r.prompt_text for r in one.records}.isdisjoint(r.prompt_text for r in two.records)
    assert len(one) + len(two) == 90 and len(one) and len(two)


def test_exported_outcomes_can_be_used_as_a_log() -> None:
    """A folder with one answer per query and its propensity gives the same answers as the journal."""
    data = laid_out(
        {"query_id": ["a", "b"], "text": ["one", "two"]},
        {"query_id": ["a", "b"], "model": ["x", "y"], "score": [1.0, 0.0], "propensity": [0.25, 0.5]},
    )
    log = log_of_outcomes(data)
    assert np.allclose(log.logged, [[0.25, 0.75], [0.5, 0.5]]) and log.action.tolist() == [0, 1]


def test_equal_rows_have_no_axes() -> None:
    """The projection is zero and never NaN, even if one question is asked again and again."""
    axes = main_axes(np.ones((50, 16)), 8)
    assert np.array_equal(axes, np.zeros_like(axes))


def test_a_long_batch_job_leaves_earlier_rounds_readable(tmp_path: Path) -> None:
    """However many lines it had, commands and dashboard still read the requests before it."""
    url = f"sqlite:///{tmp_path}/journal.db"
    migrate(url)
    rows = [record for record, _ in decisions(20)]
    job = [
        replace(record, id=f"job_{i}_{k}", job="batch_1", router="batch@1", time_s=record.time_s + 1e6)
        for k in range(3) for i, record in enumerate(rows)
    ]  # fmt: skip
    engine = open_engine(url)
    with engine.begin() as connection:
        write_records(connection, [*rows, *job])
    route = rows[0].route
    assert len(read_log(engine, route=route, limit=20)) == 20
    assert len(log_of(latest_scored(engine, route, limit=40, rounds=20))) == 20
    engine.dispose()
