"""Cascades by name in the live path, over real sockets."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from cascade.plan import NAMES
from gateway.config_load import CASCADES, parse
from tests.live import Live, live

MODELS = [
    {"name": "small", "logprobs": True, "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.1},
    {"name": "large", "logprobs": True},
]


def route(cascade: str) -> dict[str, object]:
    return {"name": "auto", "models": ["small", "large"], "router": "cheapest", "cascade": cascade,
            "accept_at": 0.8, "max_attempts": 25, "min_quality": 0.9}  # fmt: skip


async def ask(gateway: Live, **more: object) -> httpx.Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": "what is the answer?"}], **more}
    async with httpx.AsyncClient() as client:
        return await client.post(gateway.url + "/v1/chat/completions", json=body)


def test_the_file_may_name_every_strategy_there_is() -> None:
    """What the configuration accepts is what can be climbed."""
    assert set(CASCADES) == set(NAMES)


def test_a_strategy_that_could_not_finish_is_refused_at_start() -> None:
    """A step-by-step cascade with too few attempts would never have an answer."""
    models = [{**model, "provider": "up"} for model in MODELS]
    short = {**route("stepwise"), "max_attempts": 8}
    table = {"providers": [{"name": "up", "kind": "scripted"}], "models": models, "routes": [short]}
    _, problems = parse(table, {})
    assert [problem.partition(":")[0] for problem in problems] == ["routes[0].max_attempts"]


async def test_samples_that_agree_are_believed_and_the_odd_one_is_outvoted(tmp_path: Path) -> None:
    """Self-consistency asks the small model several times at once and answers with the majority."""
    scripts = {"small": [{"text": "seven"}, {"text": "eight"}, {"text": "seven"}], "large": [{"text": "never asked"}]}
    async with live(tmp_path, scripts=scripts, models=MODELS, routes=[route("self-consistency")]) as gateway:
        answer = await ask(gateway)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        await gateway.rest()
    assert answer.json()["choices"][0]["message"]["content"] == "seven"
    assert len(record.attempts) >= 3 and {attempt.model for attempt in record.attempts} == {"small"}
    assert record.cost_nanousd == sum(attempt.cost_nanousd for attempt in record.attempts) <= record.held_nanousd


@pytest.mark.parametrize("cascade", [name for name in NAMES if name != "none"])
@pytest.mark.parametrize("stream", [False, True])
async def test_every_strategy_answers_once_and_leaves_nothing(tmp_path: Path, cascade: str, stream: bool) -> None:
    """Whatever the strategy asks for on the way, the client gets one whole answer and every cent is settled."""
    points = {"text": "1. first point\n2. second point", "logprob": -1.0}
    scripts = {"small": [points], "large": [{"text": "yes, certain"}]}
    async with live(tmp_path, scripts=scripts, models=MODELS, routes=[route(cascade)]) as gateway:
        answer = await ask(gateway, stream=stream)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        await gateway.rest()
    assert answer.status_code == 200, answer.text
    assert answer.text.rstrip().endswith("[DONE]") if stream else answer.json()["choices"][0]["message"]["content"]
    assert record.verdict and 1 <= len(record.attempts) <= 25
    assert record.cost_nanousd == sum(attempt.cost_nanousd for attempt in record.attempts) <= record.held_nanousd


async def test_the_record_holds_the_confidence_that_was_compared(tmp_path: Path) -> None:
    """A rung whose evidence was read has its confidence on record; a stream without usage says it was estimated."""
    scripts = {"small": [{"text": "unsure", "logprob": -2.0}], "large": [{"text": "certain", "usage": False}]}
    async with live(tmp_path, scripts=scripts, models=MODELS, routes=[route("confidence")]) as gateway:
        answer = await ask(gateway)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        await gateway.rest()
    first, second = record.attempts
    assert first.evidence is not None and first.evidence.confidence == pytest.approx(0.1353, abs=1e-3)
    assert not first.estimated and second.estimated
