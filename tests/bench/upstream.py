"""The upstream behind every gateway that is measured: answers at once, at a few CPU-microseconds a request.

    python -m tests.bench.upstream

Chat completions of one fixed answer, streamed in `CHUNKS` events `CHUNK_GAP_S` apart where the request says
so. GET /connects tells how many connections were ever made. Prints its base URL when it listens.

A request's `seed`, a field that every gateway passes on, says how it is answered: milliseconds before the answer
begins, times 100,000, plus the microseconds between events (0: all in one write). Each event then carries the time
(CLOCK_MONOTONIC, nanoseconds) at which it was written.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import cast

import uvloop
from httptools import HttpRequestParser

CHUNKS = 51
"""Events of one stream, the last content and the usage included, `[DONE]` not."""
CHUNK_GAP_S = 0.004
TEXT = (
    "It left our warehouse this morning and should be with you within two working days. The link in the e-mail "
    "of today shows where the parcel is, and you may still change the address there until it is on the van."
)
_USAGE = {"prompt_tokens": 92, "completion_tokens": 48, "total_tokens": 140}


def _whole() -> bytes:
    answer = {
        "id": "chatcmpl-bench", "object": "chat.completion", "created": 1700000000, "model": "bench",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": TEXT, "refusal": None},
             "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": {**_USAGE, "prompt_tokens_details": {"cached_tokens": 0},
                  "completion_tokens_details": {"reasoning_tokens": 0}},
        "system_fingerprint": "fp_bench",
    }  # fmt: skip
    return _framed(json.dumps(answer).encode(), b"application/json")


def _framed(body: bytes, kind: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(body), body)


def _events() -> list[bytes]:
    """Each as the HTTP chunk that carries it; `[DONE]` and the end ride on the last."""
    words = TEXT.split()
    base = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1700000000, "model": "bench"}
    events = []
    for i in range(CHUNKS - 2):
        delta = {"content": f" {words[i % len(words)]}"} if i else {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        events.append({**base, "choices": [choice]})
    choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    events += [{**base, "choices": [choice]}, {**base, "choices": [], "usage": _USAGE}]
    framed = [_chunk(b"data: %b\n\n" % json.dumps(event).encode()) for event in events]
    framed[-1] += _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    return framed


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


WHOLE = _whole()
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENTS = _events()


SEED = re.compile(rb'"seed":\s*(\d+)')
SEED_MS = 100_000
CLOCK = b"t%019dt"
"""In an event's text."""


def _timed() -> list[tuple[bytes, bytes]]:
    """Each event before and after the time it is written; the last two and the end tell none."""
    mark = CLOCK % 0
    base = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1700000000, "model": "bench"}
    found = []
    for _ in range(CHUNKS - 2):
        choice = {"index": 0, "delta": {"content": mark.decode()}, "logprobs": None, "finish_reason": None}
        before, after = _chunk(b"data: %b\n\n" % json.dumps({**base, "choices": [choice]}).encode()).split(mark)
        found.append((before, after))
    return [*found, *((event, b"") for event in EVENTS[-2:])]


TIMED = _timed()


class Upstream(asyncio.Protocol):
    """One connection."""

    connects = 0

    def __init__(self) -> None:
        self.parser = HttpRequestParser(self)
        self.url, self.body = b"", b""
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Upstream.connects += 1
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url, self.body = url, b""

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self.url == b"/connects":
            self.transport.write(_framed(b"%d" % Upstream.connects, b"text/plain"))
            return
        streams = b'"stream":true' in self.body or b'"stream": true' in self.body
        seed = SEED.search(self.body)
        if seed is None:
            self.answer(streams, None)
            return
        wait_ms, gap_us = divmod(int(seed.group(1)), SEED_MS)
        if wait_ms:
            self.loop.call_later(wait_ms / 1e3, self.answer, streams, gap_us / 1e6)
        else:
            self.answer(streams, gap_us / 1e6)

    def answer(self, streams: bool, gap_s: float | None) -> None:
        """`gap_s` None: events as they always are, without the time."""
        if self.transport.is_closing():
            return
        if not streams:
            self.transport.write(WHOLE)
        elif gap_s is None:
            self.transport.write(STREAM_HEAD)
            self.push(0)
        elif gap_s:
            self.transport.write(STREAM_HEAD)
            self.push_timed(0, gap_s)
        else:
            self.transport.write(STREAM_HEAD + b"".join(EVENTS))

    def push_timed(self, index: int, gap_s: float) -> None:
        if self.transport.is_closing():
            return
        before, after = TIMED[index]
        self.transport.write(b"%b%b%b" % (before, CLOCK % time.monotonic_ns(), after) if after else before)
        if index + 1 < CHUNKS:
            self.loop.call_later(gap_s, self.push_timed, index + 1, gap_s)

    def push(self, index: int) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(EVENTS[index])
        if index + 1 < CHUNKS:
            self.loop.call_later(CHUNK_GAP_S, self.push, index + 1)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        uvloop.run(serve())
    except KeyboardInterrupt:
        pass
