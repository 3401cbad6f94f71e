"""The memory of a request is freed when it ends, and not only by the garbage collector."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.call import Call
from gateway.exchange import Exchange
from tests.live import Live, live

ROUTES = [{"name": "kept", "models": ["m"], "cache": "exact"}]
FAULTS = {
    "whole": {"text": "a b c"},
    "close": {"fault": "close"},
    "cut": {"fault": "cut", "text": "a b c d"},
    "malformed": {"fault": "malformed"},
    "no_done": {"fault": "no_done"},
    "refused": {"status": 503},
    "limited": {"status": 429, "retry_after_s": 0.001},
    "rejected": {"status": 400},
}


@pytest.fixture(params=FAULTS)
async def gateway(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Live]:
    """A gateway whose only model always answers in the same way."""
    scripts = {"m": [FAULTS[request.param]]}
    async with live(tmp_path, scripts=scripts, models=["m"], routes=ROUTES) as found:
        yield found


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_request_leaves_no_cycle(gateway: Live, stream: bool) -> None:
    """An error that is stored for its message must not keep the frames that it passed, and with them the request's
    body.
    """
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
        for model in ("m", "kept"):
            body = {"model": model, "messages": [{"role": "user", "content": "why?"}], "stream": stream}
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                for _ in range(3):
                    await client.post("/v1/chat/completions", json=body)
                await gateway.rest()
                gc.collect()
                found = Counter(type(one) for one in gc.garbage)
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
            assert not found[Call] and not found[Exchange], found.most_common(12)
