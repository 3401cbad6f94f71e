"""Equal lines are answered once, as far as the live cache's own rules allow."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.acceptance import Acceptance, AcceptanceOptions, Fitted
from cache.key import Partition
from cache.neighbours import FEATURES
from gateway.batch.dedupe import Deduper, Mode, keys_of
from gateway.batch.read import LineReader, ReadOptions, Request
from gateway.routes import RouteBook
from routers.features import shipped_featurizer
from tests.gateway.batch.planned import LARGE, SMALL, plan_context


def book_of(folder: Path, cache: str) -> RouteBook:
    return plan_context(folder, routes=[{"name": "auto", "models": [SMALL, LARGE], "cache": cache}]).book


def request(book: RouteBook, text: str, **body: Any) -> Request:
    record = {"custom_id": "a", "body": {"model": "auto", "messages": [{"role": "user", "content": text}], **body}}
    found = LineReader(book, ReadOptions()).judge(1, json.dumps(record).encode())
    assert isinstance(found, Request)
    return found


def keys(book: RouteBook, text: str, mode: Mode = "route", **body: Any) -> tuple[bytes, Partition | None]:
    return keys_of(request(book, text, **body), "team", mode, "embedder")


def willing() -> Acceptance:
    """A rule that accepts any neighbour without an objection of the guard."""
    learned = Acceptance(AcceptanceOptions(), random.Random(0))
    learned.fitted = Fitted(np.zeros(FEATURES), np.ones(FEATURES), np.zeros(FEATURES + 1), threshold=0.4, upper=0.02)
    return learned


def test_equal_requests_share_a_key(tmp_path: Path) -> None:
    """It is the live cache's key: what can't change the answer, such as order and metadata, doesn't count."""
    book = book_of(tmp_path, "exact")
    assert keys(book, "hi", top_p=1, metadata={"row": "1"}) == keys(book, "hi", user="u", top_p=1)
    assert keys(book, "hi")[0] != keys(book, "hi ")[0]
    assert keys(book, "hi", max_tokens=3)[0] != keys(book, "hi")[0]


@pytest.mark.parametrize(
    "body",
    [{"n": 2}, {"temperature": 1.5}, {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"store": True},
     {"headgate": {"cache": "no-store"}}, {"headgate": {"cache": "none"}}],
)  # fmt: skip
def test_requests_that_may_not_share_an_answer_have_no_key(tmp_path: Path, body: dict[str, Any]) -> None:
    """Requests with variety, state or tools are always asked."""
    assert keys(book_of(tmp_path, "exact"), "hi", **body) == (b"", None)


def test_a_route_without_a_cache_shares_nothing_unless_the_job_does(tmp_path: Path) -> None:
    """Equal prompts may be meant as several samples, which only the operator or the job knows."""
    book = book_of(tmp_path, "none")
    assert keys(book, "hi") == (b"", None)
    assert keys(book, "hi", "exact")[0]
    assert keys(book_of(tmp_path, "exact"), "hi", "none") == (b"", None)


def test_only_a_semantic_route_merges_other_words(tmp_path: Path) -> None:
    """The request itself must allow it, too."""
    assert keys(book_of(tmp_path, "exact"), "hi")[1] is None
    book = book_of(tmp_path, "semantic")
    assert keys(book, "hi")[1] is not None
    assert keys(book, "hi", "exact")[1] is None
    assert keys(book, "hi", seed=3)[1] is None
    assert keys(book, "hi", temperature=0.7)[1] is None


def test_a_repeated_key_is_found_unless_it_has_a_higher_floor(tmp_path: Path) -> None:
    """The first prompt's answer serves all that require no higher quality."""
    deduper = Deduper(shipped_featurizer())
    key, _ = keys(book_of(tmp_path, "exact"), "hi")
    assert deduper.find(key, None, "auto", 0.5) is None
    deduper.add(key, None, "auto", 0.5, 3)
    assert deduper.find(key, None, "auto", 0.5) == (3, "exact")
    assert deduper.find(key, None, "auto", 0.2) == (3, "exact")
    assert deduper.find(key, None, "auto", 0.9) is None
    assert deduper.find(b"", None, "auto", 0.0) is None


def results_of(deduper: Deduper, book: RouteBook, *texts: str) -> list[tuple[int, str] | None]:
    """What becomes of these prompts, one after the other."""
    found = []
    for index, text in enumerate(texts):
        key, question = keys(book, text)
        same = deduper.find(key, question, "auto", 0.0)
        if same is None:
            deduper.add(key, question, "auto", 0.0, index)
        found.append(same)
    return found


PARAPHRASES = ("How do I reset my password?", "how can I reset my password", "How do I not reset my password?",
               "How do I reset my password 2?", "What is the tallest mountain of Africa?")  # fmt: skip


def test_paraphrases_are_merged_if_the_rule_and_the_guard_agree(tmp_path: Path) -> None:
    """A negation, another number and another question are not merged."""
    deduper = Deduper(shipped_featurizer(), {"auto": willing()})
    assert results_of(deduper, book_of(tmp_path, "semantic"), *PARAPHRASES) == [None, (0, "semantic"), None, None, None]


def test_nothing_is_merged_by_meaning_before_the_rule_has_learned(tmp_path: Path) -> None:
    """Without a bound on false merges there are none."""
    book = book_of(tmp_path, "semantic")
    untaught = Acceptance(AcceptanceOptions(), random.Random(0))
    for acceptances in ({}, {"auto": untaught}, {"other": willing()}):
        assert results_of(Deduper(shipped_featurizer(), acceptances), book, *PARAPHRASES) == [None] * 5


def test_a_job_does_not_change_the_routes_rule(tmp_path: Path) -> None:
    """A job's look-ups don't count as traffic of the route."""
    rule = willing()
    results_of(Deduper(shipped_featurizer(), {"auto": rule}), book_of(tmp_path, "semantic"), *PARAPHRASES)
    assert (rule.requests, rule.hits, rule.judgements) == (0, 0, 0)


def test_blocks_without_repetitions_are_added_at_once() -> None:
    """The result is the same as one by one; lines without a key are never merged."""
    one, many = Deduper(shipped_featurizer()), Deduper(shipped_featurizer())
    keys_, floors = [b"a", b"", b"b"], [0.0, 0.0, 0.5]
    for index, (key, floor) in enumerate(zip(keys_, floors, strict=True), 5):
        one.add(key, None, "auto", floor, index)
    assert many.is_new([b"a", b"b"])
    many.add_all(keys_, floors, 5)
    assert not many.is_new([b"b"])
    for key in (b"a", b"b", b"", b"c"):
        for floor in (0.0, 0.4, 0.9):
            assert many.find(key, None, "auto", floor) == one.find(key, None, "auto", floor)
