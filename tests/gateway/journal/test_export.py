from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow.parquet import read_table

from gateway.journal import export as module
from gateway.journal.export import export, settle_score
from gateway.journal.record import DecisionRecord, EvidenceRecord, Record
from gateway.journal.store import Store
from gateway.journal.write import write_records
from routers.outcomes import read_outcomes
from tests.gateway.journal.records import NOON_S, attempt, decision, feedback


def write(store: Store, *records: Record) -> None:
    with store.engine.begin() as connection:
        write_records(connection, records)


def outcomes(folder: Path) -> dict[tuple[str, str], dict[str, object]]:
    rows = read_table(folder / "outcomes.parquet").to_pylist()
    return {(row["query_id"], row["model"]): row for row in rows}


def test_an_export_can_be_trained_on(tmp_path: Path, store: Store, database_url: str) -> None:
    """The reader of outcome data accepts it and finds scores, costs, confidences and propensities."""
    write(store, *(decision(number, prompt_text=f"q{number}") for number in range(10)))
    used = {"input": 10, "cache_write_1h": 4, "output": 5, "web_search": 3}
    tried = attempt("large", usage=used)
    write(store, decision(10, model="large", answered_model="large", plan=(), attempts=(tried,)))
    write(store, *(feedback(number, 0.5) for number in range(11)))
    done = export(database_url, tmp_path)
    assert (done.queries, done.outcomes, done.models) == (11, 11, {"small", "large"})
    data = read_outcomes(tmp_path)
    assert data.models == ("large", "small")
    small = outcomes(tmp_path)["dec_0", "small"]
    assert (small["propensity"], small["confidence"], small["cost_usd"]) == (0.8, 0.6, 1e-6)
    assert (small["input_tokens"], small["output_tokens"], small["latency_s"]) == (12, 5, 0.2)
    large = outcomes(tmp_path)["dec_10", "large"]
    assert (large["input_tokens"], large["output_tokens"]) == (14, 5)


def test_unscored_cached_and_failed_decisions_are_left_out(
    tmp_path: Path, store: Store, database_url: str
) -> None:
    """Decisions without a score, model, answer or query have no row, nor do older ones or those of another route."""
    write(
        store,
        decision(1),
        decision(2, cache="semantic", attempts=()),
        decision(3, attempts=(attempt("small", failure="timeout"),), answered_model=""),
        decision(4, route="code"),
        decision(5, time_s=NOON_S - 86400),
        decision(6),
        decision(7, cache="shared"),
        decision(8, surface="speech"),
        *(feedback(number, 1.0) for number in range(2, 9)),
    )
    export(database_url, tmp_path, since_s=NOON_S, route="auto")
    assert set(outcomes(tmp_path)) == {("dec_6", "small")}
    assert [row["query_id"] for row in read_table(tmp_path / "queries.parquet").to_pylist()] == ["dec_6"]


def test_only_scored_decisions_are_read_completely(
    tmp_path: Path, store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a long journal these are few: scored by a person or a judge. One with a label and no score isn't read."""
    read: list[str] = []

    def decoded(payload: str) -> DecisionRecord:
        record = decode(payload)
        read.append(record.id)
        return record

    decode = module._decode
    monkeypatch.setattr(module, "_decode", decoded)
    judged = attempt("small", evidence=EvidenceRecord(judged=0.1))
    write(store, *(decision(number) for number in range(20)), decision(20, attempts=(judged,)))
    write(store, feedback(3, 1.0), feedback(4, 0.0), feedback(5, None, label="odd"))
    assert export(database_url, tmp_path).queries == 3
    assert sorted(read) == ["dec_20", "dec_3", "dec_4"]


def test_feedback_scores_the_kept_answer_and_a_judge_the_rejected_one(
    tmp_path: Path, store: Store, database_url: str
) -> None:
    """Feedback is about the answer that the client saw; a rejected rung is scored only by a judge."""
    judged = attempt("small", evidence=EvidenceRecord(judged=0.1, confidence=0.2))
    climb = {"plan": ("small", "large"), "answered_model": "large"}
    write(store, decision(1, **climb, attempts=(judged, attempt("large"))), feedback(1, 1.0))
    write(store, decision(2, **climb, attempts=(attempt("small"), attempt("large"))), feedback(2, 0.9))
    export(database_url, tmp_path)
    found = {key: (row["score"], row["propensity"]) for key, row in outcomes(tmp_path).items()}
    assert found == {
        ("dec_1", "small"): (0.1, 0.8),
        ("dec_1", "large"): (1.0, 0.8),
        ("dec_2", "large"): (0.9, 0.8),
    }


def test_a_fallback_has_no_propensity_and_retries_are_paid(
    tmp_path: Path, store: Store, database_url: str
) -> None:
    """No router chose the fallback; failed attempts on a model are part of its cost."""
    failed = attempt("small", failure="timeout")
    tries = (failed, attempt("spare", failure="reset"), attempt("spare"))
    write(store, decision(1, answered_model="spare", attempts=tries), feedback(1, 1.0))
    export(database_url, tmp_path)
    (row,) = outcomes(tmp_path).values()
    assert (row["model"], row["propensity"]) == ("spare", None)
    assert (row["cost_usd"], row["answer_cost_usd"]) == (2e-6, 1e-6)


def test_equal_texts_are_in_one_split(tmp_path: Path, store: Store, database_url: str) -> None:
    """A query that was asked many times is only in train or only in test; both splits exist, also across pages."""
    write(store, *(decision(number, prompt_text=f"q{number % 40}") for number in range(1200)))
    write(store, *(feedback(number, 1.0) for number in range(1200)))
    assert export(database_url, tmp_path).queries == 1200
    sides: dict[str, set[str]] = {}
    for row in read_table(tmp_path / "queries.parquet").to_pylist():
        sides.setdefault(row["text"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert set.union(*sides.values()) == {"train", "test"}


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ([], None),
        ([("user", None, 1)], None),
        ([("judge", 0.1, 9), ("user", 0.9, 1)], 0.9),
        ([("user", 0.2, 1), ("user", 0.8, 2), ("user", None, 3)], 0.8),
        ([("crowd", 0.3, 5), ("check", 1.0, 1), ("judge", 0.0, 9)], 1.0),
    ],
)
def test_the_most_trusted_then_the_latest_score_counts(
    said: list[tuple[str, float | None, float]], score: float | None
) -> None:
    """A user's score precedes a check's, a judge's and any other; of one source the latest score counts."""
    rows = [{"source": source, "score": value, "time_s": time_s} for source, value, time_s in said]
    assert settle_score(rows) == score
