"""Keep-alive comments and pings between the events of a silent stream, which clients ignore."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from gateway.wire.relay import PING
from gateway.wire.sse import COMMENT
from tests.live import Live, live

SLOW = {"slow": [{"text": "one two three", "gap_s": 0.2}]}
MODELS = [{"name": name, "provider": name, "upstream_name": "slow"} for name in ("up", "claude")]
QUESTION: list[Any] = [{"role": "user", "content": "hi"}]
ASKED: dict[str, Any] = {
    "chat/completions": {"messages": QUESTION}, "completions": {"prompt": "hi"}, "responses": {"input": "hi"},
    "messages": {"messages": QUESTION, "max_tokens": 9},
}  # fmt: skip


@asynccontextmanager
async def signing(tmp_path: Path, every_s: float = 0.03) -> AsyncIterator[Live]:
    server = {"stream_keepalive_s": every_s, "cors_origins": ["https://page.example.org"]}
    auth = {"master_key": "k"}
    async with live(tmp_path, scripts=SLOW, models=MODELS, server=server, auth=auth) as gateway:
        ticking = asyncio.create_task(gateway.services.driver.streams.run())
        yield gateway
        ticking.cancel()
        assert gateway.services.driver.streams.passing == set()


async def streamed(gateway: Live, path: str, model: str, **headers: str) -> bytes:
    body = {"model": model, "stream": True, **ASKED[path]}
    async with httpx.AsyncClient(timeout=60, headers={"authorization": "Bearer k", **headers}) as client:
        answer = await client.post(f"{gateway.url}/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.content


@pytest.mark.parametrize("path", ASKED)
async def test_silence_is_filled_between_events(tmp_path: Path, path: str) -> None:
    """The comments have the form of the client's API, also for browsers, and never split an event."""
    sign = PING if path == "messages" else COMMENT
    async with signing(tmp_path) as gateway:
        asked = [streamed(gateway, path, model) for model in ("up", "claude")]
        for text in await asyncio.gather(*asked, streamed(gateway, path, "up", origin="https://page.example.org")):
            assert text.count(sign) >= 2
            parts = text.split(sign)
            assert all(part.endswith(b"\n\n") for part in parts if part)
            assert b"three" in text


async def test_an_interval_of_zero_sends_no_comment(tmp_path: Path) -> None:
    async with signing(tmp_path, every_s=0.0) as gateway:
        assert COMMENT not in await streamed(gateway, "chat/completions", "up")


async def test_the_official_sdks_read_over_them(tmp_path: Path) -> None:
    """Text and finish reason are those of a stream without them."""
    async with (
        signing(tmp_path) as gateway,
        AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="k") as openai,
        AsyncAnthropic(base_url=gateway.url, api_key="k") as anthropic,
    ):
        for model in ("up", "claude"):
            chunks = await openai.chat.completions.create(model=model, messages=QUESTION, stream=True)
            read = [chunk.choices[0] async for chunk in chunks if chunk.choices]
            assert "".join(one.delta.content or "" for one in read) == "one two three"
            assert read[-1].finish_reason == "stop"
            events = [event async for event in await openai.responses.create(model=model, input="hi", stream=True)]
            assert events[-1].type == "response.completed" and events[-1].response.output_text == "one two three"
            async with anthropic.messages.stream(model=model, messages=QUESTION, max_tokens=9) as stream:
                message = await stream.get_final_message()
            assert message.content[0].text == "one two three" and message.stop_reason == "end_turn"  # type: ignore[union-attr]
