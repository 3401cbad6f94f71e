"""Any sequence of upstream behaviours, on real sockets: every cascade ends once, within its attempts and deadline."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.journal.record import DecisionRecord
from tests.faults.endings import assert_error_shape, read_stream
from tests.faults.stage import decisions, nothing_left
from tests.faults.talk import Heard, ask, question
from tests.live import Live, live

MODELS = ("small", "medium", "large")
RESENT = {"close", "rst"}
"""Faults that end a kept-alive connection without a byte, after which the pool may send the request again."""
LONGEST_S = 3.0
"""Seconds until a stream that began in time must end."""
SLACK_S = 30.0
"""Seconds to add for a busy machine; less than the retry-after of a minute, which no deadline allows."""

STEPS: list[dict[str, Any]] = [
    {"text": "fine"},
    {"text": "unsure", "logprob": -3.0},
    {"text": "one two three", "gap_s": 0.01},
    {"usage": False},
    {"status": 429, "retry_after_s": 0.02},
    {"status": 429, "retry_after_s": 60},
    {"status": 500},
    {"status": 529},
    {"status": 400},
    {"status": 401},
    {"delay_s": 0.15},
    *({"fault": fault} for fault in ("close", "rst", "silent", "garbage", "empty", "not_json", "bad_chunk")),
    *({"fault": fault, "after": after}
      for fault in ("cut", "cut_rst", "stall", "malformed", "late_error") for after in (0, 1)),
    {"fault": "wrong_length"},
    {"fault": "no_done"},
    {"fault": "no_finish"},
    {"fault": "loris", "gap_s": 0.02},
]  # fmt: skip


@dataclass(frozen=True)
class World:
    """A route and what each of its models does with its first, second, ... request."""

    scripts: dict[str, list[dict[str, Any]]]
    route: dict[str, Any]
    anthropic: frozenset[str]
    deadline_s: float
    asks: list[tuple[str, bool]]
    """Surface and whether it streams, all at the same time."""


@st.composite
def worlds(draw: st.DrawFn) -> World:
    script = st.lists(st.sampled_from(STEPS), min_size=1, max_size=4)
    route = {
        "name": "auto",
        "router": "cheapest",
        "retries": draw(st.integers(0, 2)),
        "max_attempts": draw(st.integers(1, 5)),
        "cascade": draw(st.sampled_from(["none", "confidence"])),
        "accept_at": 0.6,
        "cache": draw(st.sampled_from(["none", "exact"])),
    }
    stepped = draw(st.integers(1, len(MODELS)))
    route |= {"models": list(MODELS[:stepped]), "fallback": list(MODELS[stepped:])}
    if draw(st.booleans()):
        route |= {"hedge_after_s": 0.05, "hedge_max_share": 1.0}
    one = st.tuples(st.sampled_from(["chat", "messages", "responses"]), st.booleans())
    return World(
        {model: draw(script) for model in MODELS},
        route,
        draw(st.frozensets(st.sampled_from(MODELS))),
        draw(st.sampled_from([0.3, 0.8, 2.0])),
        draw(st.lists(one, min_size=1, max_size=4)),
    )


def models(world: World) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "provider": "claude" if name in world.anthropic else "up",
            "input_usd_per_mtok": 1.0 + at,
            "output_usd_per_mtok": 4.0,
            "logprobs": name not in world.anthropic,
        }
        for at, name in enumerate(MODELS)
    ]


async def climb(world: World, folder: Path) -> None:
    """Send the requests at the same time, and check what must be true of each of them."""
    config = {
        "auth": {"keys": [{"name": "k", "key": "hg-k", "budget_usd": 1.0}]},
        "server": {"first_byte_timeout_s": 0.2, "stall_timeout_s": 0.2, "request_timeout_s": LONGEST_S},
        "routes": [world.route],
    }
    async with nothing_left(), live(folder, scripts=world.scripts, models=models(world), **config) as gateway:
        heards = await asyncio.gather(*(one(gateway, world, surface, stream) for surface, stream in world.asks))
        await gateway.rest()
        records = {record.id: record for record in decisions(gateway)}
        assert len(records) == len(decisions(gateway)) == len(world.asks)
        for (surface, stream), heard in zip(world.asks, heards, strict=True):
            check_ending(surface, heard, stream=stream)
            check_bounds(world, records[heard.decision_id], stream=stream)
        check_books(gateway, world, list(records.values()))


async def one(gateway: Live, world: World, surface: str, stream: bool) -> Heard:
    return await ask(
        gateway.url,
        surface,
        question(surface, "auto", stream=stream),
        authorization="Bearer hg-k",
        x_stainless_read_timeout=str(world.deadline_s),
    )


def check_ending(surface: str, heard: Heard, *, stream: bool) -> None:
    """Each request has one head and one end: an answer, an error in its API's form, or a stream with one terminal."""
    assert heard.heads == 1 and heard.whole, heard
    if heard.status != 200:
        assert_error_shape(surface, heard)
    elif stream:
        seen = read_stream(heard.body)
        assert seen.terminals + seen.errors == 1 and seen.last in ("terminal", "error"), heard.body
    else:
        assert "error" not in heard.json or heard.json["error"] is None


def check_bounds(world: World, record: DecisionRecord, *, stream: bool) -> None:
    """Attempts, cost and time are within the request's limits."""
    assert len(record.attempts) <= world.route["max_attempts"], record
    assert record.cost_nanousd == sum(attempt.cost_nanousd for attempt in record.attempts) <= record.held_nanousd
    assert record.latency_s is not None
    begun_s = [attempt.started_s for attempt in record.attempts]
    assert all(started_s <= world.deadline_s + SLACK_S for started_s in begun_s)
    assert record.latency_s <= (LONGEST_S if stream else world.deadline_s) + SLACK_S, record


def check_books(gateway: Live, world: World, records: list[DecisionRecord]) -> None:
    """All holds are released, and the upstream got no call that isn't recorded."""
    services = gateway.services
    caller = services.keyring.identify(b"Bearer hg-k", None, "127.0.0.1", 0)
    spent, held = services.ledger.balance(caller.accounts[0])  # type: ignore[attr-defined]
    assert (spent, held) == (sum(record.cost_nanousd for record in records), 0)
    made = Counter(attempt.model for record in records for attempt in record.attempts)
    for model, calls in gateway.upstream.seen.by_model.items():
        resendable = any(step.get("fault") in RESENT for step in world.scripts[model])
        assert calls <= made[model] * (2 if resendable else 1)


def run(world: World) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(climb(world, Path(folder)))


CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@given(worlds())
@settings(CALM, max_examples=25)
def test_every_climb_ends_once(world: World) -> None:
    """Every cascade ends once, whatever upstreams do."""
    run(world)


@pytest.mark.slow
@given(worlds())
@settings(CALM, max_examples=400)
def test_every_climb_ends_once_at_length(world: World) -> None:
    """The same with many more examples."""
    run(world)
