"""Keeps some connections busy with chat requests, each prompt unlike any other, and counts what comes back.

    python -m tests.bench.load URL --connections 16 --seconds 3 --model auto --key hg-... [--stream]

Each connection sends its next request when the last answer has ended. Prints one JSON object: requests,
failures, and the median latency in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import time
from typing import cast
from urllib.parse import urlsplit

import uvloop
from httptools import HttpResponseParser

PROMPT = (
    "I ordered the second volume of the atlas of northern birds for my daughter last week, because her birthday "
    "is on Friday. The shop says it was sent, yet the parcel service has never heard of it. What can I do now?"
)
SYSTEM = "You answer letters to a bookshop, kindly and in at most three sentences."


def requests(host: str, model: str, key: str, *, stream: bool) -> tuple[bytes, bytes]:
    """The bytes of a request before and after its number, which has ten digits."""
    mark = "0" * 10
    body = {
        "model": model,
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"Order {mark}: {PROMPT}"},
        ],
        "temperature": 0.2,
        "max_tokens": 256,
        **({"stream": True} if stream else {}),
    }
    text = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\naccept: */*\r\ncontent-length: {len(text)}\r\n\r\n"
    )
    before, after = (head.encode() + text).split(mark.encode())
    return before, after


class Run:
    """What all connections of one measurement share."""

    def __init__(self, before: bytes, after: bytes, connections: int, seconds: float) -> None:
        self.before, self.after = before, after
        self.numbers = itertools.count(int(time.time() * 10_000) % 10**9)
        self.until = time.perf_counter() + seconds
        self.latencies_s: list[float] = []
        self.failures: list[str] = []
        self.open = connections
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def leave(self) -> None:
        self.open -= 1
        if not self.open:
            self.over.set_result(None)


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.parser = HttpResponseParser(self)
        self.left = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.ask()

    def ask(self) -> None:
        self.begun = time.perf_counter()
        self.transport.write(b"%b%010d%b" % (self.run.before, next(self.run.numbers), self.run.after))

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        now, status = time.perf_counter(), self.parser.get_status_code()
        if status != 200:
            self.run.failures.append(f"status {status}")
        self.run.latencies_s.append(now - self.begun)
        if now < self.run.until:
            self.ask()
        else:
            self.leave()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.left:
            self.run.failures.append("connection lost")
            self.leave()

    def leave(self) -> None:
        self.left = True
        self.transport.close()
        self.run.leave()


async def load(
    url: str, *, model: str, key: str, connections: int, seconds: float, stream: bool
) -> dict[str, object]:
    where = urlsplit(url)
    before, after = requests(where.netloc, model, key, stream=stream)
    run = Run(before, after, connections, seconds)
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(lambda: Client(run), str(where.hostname), where.port or 80)
    await run.over
    return {
        "requests": len(run.latencies_s),
        "failures": len(run.failures),
        "failure": run.failures[0] if run.failures else "",
        "p50_ms": statistics.median(run.latencies_s) * 1e3 if run.latencies_s else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load")
    parser.add_argument("url")
    parser.add_argument("--model", required=True)
    parser.add_argument("--key", default="none")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--stream", action="store_true")
    chosen = vars(parser.parse_args())
    print(json.dumps(uvloop.run(load(chosen.pop("url"), **chosen))))


if __name__ == "__main__":
    main()
