"""What a request takes before it is answered, and gives back where it never gets that far."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.audit import anew
from gateway.call import Arrival, read_call
from gateway.keys import ANYONE
from gateway.limits import Limit
from tests.live import live

BODY = b'{"model":"auto","messages":[{"role":"user","content":"%s"}]}' % (b"word " * 200)
LIMIT = Limit("route:auto", None, 1000)


def call(**headers: str) -> Any:
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return read_call("chat", BODY, Arrival(named, "127.0.0.1", "req_1", 0.0), max_messages=9, timeout_s=60.0)


class Gone:
    """A ledger whose client leaves while it is asked."""

    async def hold(self, *_: object) -> None:
        raise asyncio.CancelledError


async def test_a_client_that_leaves_during_the_hold_gives_its_tokens_back(tmp_path: Path) -> None:
    """Whatever ends the hold, rate limits get back what was taken for a request that was never sent."""
    routes = [{"name": "auto", "models": ["echo"], "router": "cheapest", "tpm": 1000}]
    async with live(tmp_path, routes=routes) as gateway:
        services = gateway.services
        ledger, services.ledger = services.ledger, Gone()  # type: ignore[assignment]
        with pytest.raises(asyncio.CancelledError):
            await gateway.app.answering.hold(call(), ANYONE)
        services.ledger = ledger
        left = dict(services.limits.take((LIMIT,), 0, services.now()).headers(services.now()))
    assert int(left[b"x-ratelimit-remaining-tokens"]) >= 999


def test_a_question_asked_anew_keeps_its_route_and_models() -> None:
    """An audit compares with what the same route says under the same knobs, past the cache."""
    asked = call(x_headgate_route="other", x_headgate_models="small,large", x_headgate_cost_weight="0.9")
    again = anew(asked).wishes
    assert (again.route, again.models, again.stated, again.cache) == ("other", ("small", "large"), True, "none")
    assert again.knobs.cost_weight == 0.9
