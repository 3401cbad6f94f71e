"""Solved cases shown before a question, from a file, over real sockets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from gateway.batch.ask import ArmCall, Asker
from gateway.batch.prompts import Prompt
from gateway.batch.types import Arm
from gateway.config.load import parse
from gateway.errors import ConfigError
from gateway.journal.record import DecisionRecord, FeedbackRecord
from gateway.journal.store import open_store
from gateway.journal.write import write_records
from gateway.keys import ANYONE
from gateway.learn.rounds import drawn_of
from gateway.learn.solved import solved_cases
from gateway.solved import open_solved
from tests.live import Live, live

CASES = [
    {"question": "reverse the sum of 12 and 13", "answer": "52"},
    {"question": "reverse the sum of 20 and 5", "answer": "52"},
    {"question": "write a poem about the sea", "answer": "waves"},
    {"question": "reverse the sum of 1 and 1", "answer": "secret", "tenant": "rival"},
]
QUESTION = "reverse the sum of 12 and 14"


def cases(folder: Path, lines: list[dict[str, Any]] | None = None) -> str:
    file = folder / "cases.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in (CASES if lines is None else lines)))
    return str(file)


def route(folder: Path, **more: Any) -> dict[str, Any]:
    shown = {"solved": cases(folder), "solved_most": 2, "solved_withheld": 0.0}
    return {"name": "auto", "models": ["small"], "router": "cheapest", **shown, **more}


async def ask(gateway: Live, question: str = QUESTION, key: str = "") -> tuple[list[dict[str, str]], httpx.Response]:
    """The messages that the upstream last received, and the client's answer."""
    system = {"role": "system", "content": "Be brief."}
    body = {"model": "auto", "messages": [system, {"role": "user", "content": question}], "max_tokens": 8}
    async with httpx.AsyncClient(timeout=60) as client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        answer = await client.post(gateway.url + "/v1/chat/completions", json=body, headers=headers)
    return msgspec.json.decode(gateway.upstream.seen.recent[-1]["body"])["messages"], answer


async def test_the_nearest_cases_stand_before_the_question(tmp_path: Path) -> None:
    """The client's messages stay whole and in order, no other tenant's case is shown, and the hold covers all of it."""
    async with live(tmp_path, models=["small"], routes=[route(tmp_path)]) as gateway:
        seen, answer = await ask(gateway)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        await gateway.rest()
    assert [message["role"] for message in seen] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert record.cases_shown == 2 and record.cases_withheld == 0.0
    assert seen[0]["content"] == "Be brief." and seen[-1]["content"] == QUESTION
    assert {seen[1]["content"], seen[3]["content"]} == {CASES[0]["question"], CASES[1]["question"]}
    assert "secret" not in str(seen) and 0 < record.cost_nanousd <= record.held_nanousd


async def test_a_question_like_no_case_goes_out_as_it_came(tmp_path: Path) -> None:
    """Cases that are not similar are not shown, nor is a question as its own example."""
    async with live(tmp_path, models=["small"], routes=[route(tmp_path, solved_withheld=1.0)]) as gateway:
        far, answer = await ask(gateway, "quarterly tax filing deadline for corporations")
        own, _ = await ask(gateway, CASES[2]["question"])
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
    assert len(far) == 2 and "waves" not in str(own)
    assert record.cases_shown is None and record.cases_withheld == 0.0, "none were found, so none were withheld"


async def test_cases_are_withheld_by_chance_from_a_share_of_requests(tmp_path: Path) -> None:
    """The record says how many were shown and with what probability; a cached answer has none."""
    routes = [route(tmp_path, solved_withheld=0.5, cache="exact")]
    async with live(tmp_path, models=["small"], routes=routes) as gateway:
        told = list[DecisionRecord]()
        for number in range(60):
            seen, answer = await ask(gateway, f"reverse the sum of 12 and {100 + number}")
            record = await gateway.decision(answer.headers["x-headgate-decision-id"])
            assert len(seen) == (6 if record.cases_shown else 2) and record.cases_withheld == 0.5
            told.append(record)
        _, answer = await ask(gateway, "reverse the sum of 12 and 100")
        again = await gateway.decision(answer.headers["x-headgate-decision-id"])
    assert {record.cases_shown for record in told} == {0, 2}
    by_id = {(record.cases_shown, drawn_of(record.id) < 0.5) for record in told}
    assert len(by_id) == 4, "failed checks are thinned out by the id: cases must not be"
    assert 10 <= sum(record.cases_shown == 0 for record in told) <= 50
    assert again.from_cache and again.cases_shown is None


async def test_cases_are_not_withheld_from_keys_that_opted_out_of_exploration(tmp_path: Path) -> None:
    """For such keys they are shown with probability 1."""
    auth = {"master_key": "master", "keys": [{"name": "calm", "key": "sk-calm", "explore": False}]}
    always = route(tmp_path, solved_withheld=1.0)
    async with live(tmp_path, models=["small"], routes=[always], auth=auth) as gateway:
        seen, answer = await ask(gateway, key="sk-calm")
        shown = await gateway.decision(answer.headers["x-headgate-decision-id"])
        bare, answer = await ask(gateway, key="master")
        withheld = await gateway.decision(answer.headers["x-headgate-decision-id"])
    assert len(seen) == 6 and (shown.cases_shown, shown.cases_withheld) == (2, 0.0)
    assert len(bare) == 2 and (withheld.cases_shown, withheld.cases_withheld) == (0, 1.0)


async def test_a_batch_job_is_withheld_nothing(tmp_path: Path) -> None:
    """Nothing is learnt from a batch job's answers, so withholding would only harm it."""
    routes = [route(tmp_path, solved_withheld=1.0)]
    async with live(tmp_path, models=["small"], routes=routes) as gateway:
        asker = Asker(gateway.services, "job", ANYONE)
        body = {"model": "auto", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8}
        prompt = Prompt(0, 1, "a", "chat", "/v1/chat/completions", msgspec.json.encode(body), QUESTION)
        told = await asker.ask(asker.ready(prompt, ArmCall(Arm("small"), 0.1, 0.0)), tries=1, timeout_s=60.0)
    assert told.ok and len(msgspec.json.decode(gateway.upstream.seen.recent[-1]["body"])["messages"]) == 5


async def test_checks_still_read_an_answer_that_was_shown_cases(tmp_path: Path) -> None:
    """An answer with cases in its prompt is checked like any other."""
    models = [{"name": "small"}, {"name": "large", "output_usd_per_mtok": 40.0}]
    checked = {"models": ["small", "large"], "cascade": "confidence", "check": ["false"], "check_timeout_s": 60.0}
    async with live(tmp_path, models=models, routes=[route(tmp_path, **checked)]) as gateway:
        _, answer = await ask(gateway)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
    assert [attempt.model for attempt in record.attempts] == ["small", "large"] and record.cases_shown == 2
    assert record.attempts[0].evidence is not None and record.attempts[0].evidence.checks_passed is False


def test_bad_files_and_cascades_that_show_nothing_are_refused(tmp_path: Path) -> None:
    """A missing file, a line that is no case, and a strategy that writes its own requests are refused."""
    with pytest.raises(ConfigError, match="No such file"):
        open_solved(str(tmp_path / "nothing.jsonl"), 4)
    with pytest.raises(ConfigError, match="line 2"):
        open_solved(cases(tmp_path, [CASES[0], {"question": "?"}]), 4)
    provider, model = {"name": "up", "kind": "scripted"}, {"name": "small", "provider": "up"}
    verifying = route(tmp_path, cascade="verify")
    _, problems = parse({"providers": [provider], "models": [model], "routes": [verifying]}, {})
    assert [problem.partition(":")[0] for problem in problems] == ["routes[0].solved"]


def test_cases_are_made_from_answers_found_right(tmp_path: Path) -> None:
    """Single turns with text and good feedback become cases, oldest first; the latest feedback on an answer counts."""
    store = open_store(f"sqlite:///{tmp_path}/journal.db")
    told = [("a", 1.0, 1, "four"), ("b", 0.2, 1, "five"), ("c", 1.0, 3, "six"), ("d", 1.0, 1, ""), ("e", 1.0, 1, "ten")]
    asked = [
        DecisionRecord(id=id, time_s=at, route="auto", tenant="t", turns=turns, prompt_text=f"{id}?", answer_text=text)
        for at, (id, _, turns, text) in enumerate(told)
    ]
    judged = [
        FeedbackRecord(id=f"f{id}", time_s=at, decision_id=id, score=score, source="user")
        for at, (id, score, _, _) in enumerate(told)
    ]
    later = FeedbackRecord(id="later", time_s=9.0, decision_id="e", score=0.0, source="user")
    with store.engine.begin() as connection:
        write_records(connection, [*asked, *judged, later])
    assert [(case.question, case.answer, case.tenant) for case in solved_cases(store, "auto")] == [("a?", "four", "t")]
    store.close()
