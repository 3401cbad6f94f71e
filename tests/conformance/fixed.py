"""An upstream that answers as it is told, byte for byte, and remembers what it was asked: for answers that the scripted
provider never gives.

    async with fixed(tmp_path, "anthropic", {"type": "message", ...}) as home:
        answer = await home.sdk("openai").do("chat.completions.create", model="m", messages=...)
        home.asked
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.conformance.clients import Sdk
from tests.live import Live, live

Json = dict[str, Any]


class Fixed:
    """A gateway whose model `m` stands at one such upstream. Events are answered as a stream, bytes as JSON."""

    def __init__(self, answer: Json | list[Json] | bytes) -> None:
        self.answer = answer
        self.then: list[Json | list[Json] | bytes] = []
        """The answers to further requests, in order."""
        self.heard: list[Json] = []
        """All requests that it received."""
        self.silent_after: int | None = None
        """Index of the answer that stops without an end, while its connection stays open."""
        self.url = ""
        self.gateway: Live | None = None
        self.asked: Json = {}
        self._sdks: list[Sdk] = []

    def sdk(self, kind: str, mode: str = "async", **options: Any) -> Sdk:
        self._sdks.append(Sdk(kind, mode, self.url, **options))
        return self._sdks[-1]

    async def close(self) -> None:
        for sdk in self._sdks:
            await sdk.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.asked = json.loads(await reader.readexactly(size))
                self.heard.append(self.asked)
                kind, body = self._said()
                self.answer = self.then.pop(0) if self.then else self.answer
                more = len(self.heard) - 1 == self.silent_after
                size = len(body) + more
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (kind, size))
                writer.write(body)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _said(self) -> tuple[bytes, bytes]:
        if isinstance(self.answer, bytes):
            return b"application/json", self.answer
        if isinstance(self.answer, dict):
            return b"application/json", json.dumps(self.answer).encode()
        return b"text/event-stream", streamed(self.answer)


def streamed(events: list[Json]) -> bytes:
    """Server-sent events of these payloads."""
    names = [f"event: {event['type']}\n" if "type" in event else "" for event in events]
    written = [f"{name}data: {json.dumps(event)}\n\n" for name, event in zip(names, events, strict=True)]
    return "".join([*written, "" if names[-1] else "data: [DONE]\n\n"]).encode()


@asynccontextmanager
async def fixed(
    folder: Path,
    kind: str,
    answer: Json | list[Json] | bytes,
    model: Json | None = None,
    more: Sequence[Json] = (),
    provider: Json | None = None,
    **extra: Any,
) -> AsyncIterator[Fixed]:
    """`kind`: of the provider, which `provider` has more settings of, as `model` of the model; `more`: other models, at
    the scripted upstream.
    """
    home = Fixed(answer)
    server = await asyncio.start_server(home.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    providers = [{"name": "told", "kind": kind, "base_url": url, **(provider or {})}]
    models = [{"name": "m", "provider": "told", **(model or {})}, *more]
    try:
        async with live(folder, models=models, providers=providers, **extra) as gateway:
            home.url, home.gateway = gateway.url, gateway
            try:
                yield home
            finally:
                await home.close()
            await gateway.rest()
    finally:
        server.close()


def message(*content: Json, stop: str = "end_turn", **more: Any) -> Json:
    """Anthropic's whole answer."""
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "up", "content": list(content)}
    usage = {"input_tokens": 5, "output_tokens": 3}
    return {**head, "stop_reason": stop, "stop_sequence": None, "usage": usage, **more}


def message_events(*content: tuple[Json, list[Json]], stop: str = "end_turn") -> list[Json]:
    """The events of the same message as a stream: each block as it starts, and its deltas."""
    events: list[Json] = [{"type": "message_start", "message": {**message(), "stop_reason": None}}]
    for index, (block, deltas) in enumerate(content):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": stop, "stop_sequence": None}
    return [*events, {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 3}}, {"type": "message_stop"}]


def completion(finish: str = "stop", **said: Any) -> Json:
    """OpenAI's whole chat answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **said}, "finish_reason": finish}
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    return {"id": "c1", "object": "chat.completion", "created": 1, "model": "up", "choices": [choice], "usage": usage}


def completion_events(*deltas: Json, finish: str = "stop") -> list[Json]:
    """The chunks of the same answer as a stream."""
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "up"}
    ends = [*((delta, None) for delta in deltas), ({}, finish)]
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in ends]
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    return [*chunks, {**head, "choices": [], "usage": usage}]
