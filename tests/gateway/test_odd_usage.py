"""Odd, missing or false usage in upstream answers: each answer is paid for, and its decision is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.journal.record import DecisionRecord
from tests.conformance.fixed import Fixed, Json, completion, completion_events, fixed, message, message_events

SAID = "rain " * 80
TOKENS = 100
"""Of what is said, where nobody counted."""
COUNTED: Json = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
PRICES = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 15.0}
ASKED: Json = {"model": "m", "max_tokens": 200, "messages": [{"role": "user", "content": "weather?"}]}


def stream(*usages: Any) -> list[Json]:
    """A streamed answer with these usages, one after the other."""
    *events, last = completion_events({"content": SAID})
    return [*events, *({**last, "usage": usage} for usage in usages)]


async def paid(home: Fixed, path: str = "/v1/chat/completions", **more: Any) -> DecisionRecord:
    assert home.gateway is not None
    asked = ASKED | ({"stream": True} if isinstance(home.answer, list) else {}) | more
    async with httpx.AsyncClient() as client:
        answer = await client.post(home.gateway.url + path, json=asked)
    assert answer.status_code == 200, answer.text
    await home.gateway.rest()
    return await home.gateway.decision(answer.headers["x-headgate-decision-id"])


NOTHING: Json = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize(
    ("kind", "path", "answer"),
    [
        ("openai", "/v1/chat/completions", completion(content=SAID) | {"usage": NOTHING}),
        ("openai", "/v1/chat/completions", completion(content=SAID) | {"usage": {"prompt_tokens": 5}}),
        ("openai", "/v1/chat/completions", stream(NOTHING)),
        ("openai", "/v1/chat/completions", stream({**COUNTED, "completion_tokens": 0, "total_tokens": 5})),
        ("anthropic", "/v1/messages",
         message({"type": "text", "text": SAID}) | {"usage": {"input_tokens": 0, "output_tokens": 0}}),
    ],
)  # fmt: skip
async def test_what_was_said_is_not_free_because_nobody_counted_it(
    tmp_path: Path, kind: str, path: str, answer: Any
) -> None:
    """Zero usage beside a text is estimated, on each side for which the upstream states none."""
    async with fixed(tmp_path, kind, answer, PRICES) as home:
        record = await paid(home, path)
    (attempt,) = record.attempts
    assert attempt.estimated and attempt.usage["output"] == TOKENS and attempt.usage["input"] > 0
    assert record.cost_nanousd >= TOKENS * 15_000


@pytest.mark.parametrize("is_stream", [False, True])
async def test_every_choice_is_paid_for_where_nobody_counted(tmp_path: Path, is_stream: bool) -> None:
    """All choices are estimated, not only the first, which evidence is read from."""
    whole, events = completion(content=SAID), stream(None)
    first, end = events[0]["choices"][0], events[1]["choices"][0]
    events[:2] = [{**events[0], "choices": [{**one, "index": index}]} for index in range(3) for one in (first, end)]
    whole |= {"usage": None, "choices": [{**whole["choices"][0], "index": index} for index in range(3)]}
    async with fixed(tmp_path, "openai", events if is_stream else whole, PRICES) as home:
        record = await paid(home)
    assert record.attempts[0].estimated and record.attempts[0].usage["output"] == 3 * TOKENS


async def test_every_choice_is_paid_for_where_a_stream_breaks_off(tmp_path: Path) -> None:
    """All choices are estimated where a stream ends before its usage."""
    event = completion_events({"content": SAID})[0]
    events = [{**event, "choices": [{**event["choices"][0], "index": index}]} for index in range(3)]
    async with fixed(tmp_path, "openai", events, PRICES) as home:
        record = await paid(home)
    assert record.attempts[0].failure == "stream_cut" and record.attempts[0].usage["output"] == 3 * TOKENS


async def test_a_stream_that_breaks_off_costs_what_arrived(tmp_path: Path) -> None:
    """Anthropic's streams begin with a count of almost no output, which the text that follows exceeds."""
    events = message_events(({"type": "text", "text": ""}, [{"type": "text_delta", "text": SAID}]))[:-2]
    async with fixed(tmp_path, "anthropic", events, PRICES) as home:
        record = await paid(home, "/v1/messages")
    (attempt,) = record.attempts
    assert attempt.failure == "stream_cut" and attempt.estimated
    assert attempt.usage == {"input": 5, "output": TOKENS} and record.cost_nanousd == 5_000 + TOKENS * 15_000


@pytest.mark.parametrize("then", [NOTHING, None, {}])
async def test_a_count_is_not_taken_back(tmp_path: Path, then: Any) -> None:
    """The last chunk of a stream may repeat its usage as zeros, which are ignored."""
    async with fixed(tmp_path, "openai", stream(COUNTED, then), PRICES) as home:
        record = await paid(home)
    assert record.attempts[0].usage == {"input": 5, "output": 3} and record.cost_nanousd == 5_000 + 3 * 15_000


@pytest.mark.parametrize("count", [2**31, 2**52, 2**70, 1e18])
async def test_no_count_is_more_than_the_journal_holds(tmp_path: Path, count: float) -> None:
    """Usage is bounded so that its cost fits 64 bits; otherwise the decision would be lost."""
    usage = {"prompt_tokens": 5, "completion_tokens": count}
    async with fixed(tmp_path, "openai", completion(content=SAID) | {"usage": usage}, PRICES) as home:
        record = await paid(home)
    assert record.attempts[0].usage == {"input": 5, "output": TOKENS}


async def test_no_hold_is_more_than_the_journal_holds(tmp_path: Path) -> None:
    """However much a request asks for, its decision is recorded where no budget refuses it."""
    asks = {"model": "m", "prompt": ["weather?"] * 4096, "n": 128, "max_tokens": 2**31}
    said = {"id": "c1", "object": "text_completion", "created": 1, "model": "up", "usage": COUNTED,
            "choices": [{"index": 0, "text": "rain", "finish_reason": "stop", "logprobs": None}]}  # fmt: skip
    async with fixed(tmp_path, "openai", said, PRICES) as home, httpx.AsyncClient() as client:
        assert home.gateway is not None
        answer = await client.post(home.gateway.url + "/v1/completions", json=asks)
        assert answer.status_code == 200, answer.text
        await home.gateway.rest()
        record = await home.gateway.decision(answer.headers["x-headgate-decision-id"])
    assert record.cost_nanousd < record.held_nanousd < 2**63


SPOKEN = 5 * 1000 + 3 * 15_000
"""What COUNTED costs."""


def at(tier: str | None, *, is_stream: bool) -> Any:
    """An answer that names its service tier; as a stream in each chunk, as OpenAI's do, here with values of odd types.
    """
    told = {} if tier is None else {"service_tier": tier}
    whole = completion(content=SAID) | {"usage": COUNTED} | told
    return [event | told | {"model": 7} for event in stream(COUNTED)] if is_stream else whole


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "told", "times"),
    [("priority", "priority", 2), ("priority", "default", 1), ("priority", None, 2), ("priority", "auto", 2),
     ("flex", "flex", 1), (None, "priority", 2), (None, None, 1)],
)  # fmt: skip
async def test_a_service_tier_has_its_price(
    tmp_path: Path, asked: str | None, told: str | None, times: int, is_stream: bool
) -> None:
    """The tier in the answer is billed if it names one; the tier in the request is held."""
    async with fixed(tmp_path, "openai", at(told, is_stream=is_stream), PRICES) as home:
        plain = await paid(home)
        record = await paid(home, **({} if asked is None else {"service_tier": asked}))
    assert record.cost_nanousd == times * SPOKEN
    assert record.held_nanousd == plain.held_nanousd * (2 if asked == "priority" else 1)


@pytest.mark.parametrize("tier", ["flex", "priority"])
async def test_tiers_cost_what_the_model_says(tmp_path: Path, tier: str) -> None:
    """A cheaper tier is held at the ordinary price, at which the request may be served all the same."""
    prices = {**PRICES, "tier_prices": {"flex": 0.5, "priority": 1.5}}
    async with fixed(tmp_path, "openai", at(tier, is_stream=False), prices) as home:
        plain = await paid(home)
        record = await paid(home, service_tier=tier)
    assert record.cost_nanousd == (SPOKEN * 3 // 2 if tier == "priority" else SPOKEN // 2)
    assert record.held_nanousd == (plain.held_nanousd * 3 // 2 if tier == "priority" else plain.held_nanousd)


async def test_a_tier_that_the_upstream_is_not_told_costs_nothing_more(tmp_path: Path) -> None:
    """Anthropic's API doesn't receive OpenAI's tiers, so they cost nothing there; its own fast mode has its price."""
    answer = message({"type": "text", "text": SAID})
    async with fixed(tmp_path, "anthropic", answer, PRICES) as home:
        assert (await paid(home, service_tier="priority")).cost_nanousd == SPOKEN
        assert (await paid(home, "/v1/messages", service_tier="auto")).cost_nanousd == SPOKEN
        assert (await paid(home, "/v1/messages", speed="fast")).cost_nanousd == 6 * SPOKEN
        home.answer = answer | {"usage": {**answer["usage"], "speed": "standard"}}
        assert (await paid(home, "/v1/messages", speed="fast")).cost_nanousd == SPOKEN


async def test_a_cap_on_the_cost_knows_of_tiers(tmp_path: Path) -> None:
    """A request's cap on cost is compared with the price of the tier that it asks for."""
    async with fixed(tmp_path, "openai", at("priority", is_stream=False), PRICES) as home:
        assert home.gateway is not None
        for tier, status in (("default", 200), ("priority", 400)):
            asked = ASKED | {"service_tier": tier, "headgate": {"max_cost_usd": 0.004}}
            async with httpx.AsyncClient() as client:
                answer = await client.post(home.gateway.url + "/v1/chat/completions", json=asked)
            assert answer.status_code == status, answer.text


PDF: Json = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0xLjcK"}}
FILE: Json = {"type": "file", "file": {"file_id": "file-abc"}}


@pytest.mark.parametrize("context", [0, 50_000])
@pytest.mark.parametrize(("kind", "path", "part"), [("anthropic", "/v1/messages", PDF),
                                                    ("openai", "/v1/chat/completions", FILE)])  # fmt: skip
async def test_a_document_is_held_at_the_models_context(
    tmp_path: Path, kind: str, path: str, part: Json, context: int
) -> None:
    """Documents of unknown length are held at the model's whole context, so that no budget is overrun."""
    tokens = (context or 200_000) - 200
    answer = message({"type": "text", "text": SAID}) | {"usage": {"input_tokens": tokens, "output_tokens": 200}}
    if kind == "openai":
        used = {"prompt_tokens": tokens, "completion_tokens": 200, "total_tokens": tokens + 200}
        answer = completion(content=SAID) | {"usage": used}
    async with fixed(tmp_path, kind, answer, {**PRICES, "context_tokens": context}) as home:
        record = await paid(home, path, messages=[{"role": "user", "content": [part]}])
        assert home.gateway is not None
        assert home.gateway.services.ledger.overrun_nanousd == 0
    assert record.held_nanousd >= record.cost_nanousd == tokens * 1000 + 200 * 15_000


async def test_a_prediction_is_held(tmp_path: Path) -> None:
    """Predicted tokens that the answer doesn't use are billed as output, and held."""
    used = {"prompt_tokens": 5, "completion_tokens": 1100, "total_tokens": 1105,
            "completion_tokens_details": {"rejected_prediction_tokens": 900}}  # fmt: skip
    async with fixed(tmp_path, "openai", completion(content=SAID) | {"usage": used}, PRICES) as home:
        prediction = {"type": "content", "content": "rain " * 180}
        record = await paid(home, prediction=prediction)
    assert record.held_nanousd >= record.cost_nanousd == 5 * 1000 + 1100 * 15_000
