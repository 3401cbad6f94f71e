"""Keeps some connections busy with chat requests, each prompt unlike any other, and counts what comes back.

    python -m tests.bench.load URL --connections 16 --seconds 3 --model auto --key hg-... [--stream]
        [--requests N] [--seed N] [--body-bytes N] [--header "name: value"]

Each connection sends its next request when the last answer has ended. Prints one JSON object: requests, failures,
seconds, the latency's median and 99th percentile in milliseconds, and where events carry the time at which they were
written (see upstream.py), their one-way delay in microseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import statistics
import sys
import time
from collections.abc import Sequence
from typing import cast
from urllib.parse import urlsplit

import uvloop
from httptools import HttpResponseParser

PROMPT = (
    "I ordered the second volume of the atlas of northern birds for my daughter last week, because her birthday "
    "is on Friday. The shop says it was sent, yet the parcel service has never heard of it. What can I do now?"
)
CLOCKS = re.compile(rb"t(\d{19})t")
EOL = "\r\n"
SYSTEM = "You answer letters to a bookshop, kindly and in at most three sentences."


def requests(
    host: str, model: str, key: str, *, stream: bool, seed: int | None = None, body_bytes: int = 0,
    headers: Sequence[str] = (),
) -> tuple[bytes, bytes]:
    """The bytes of a request before and after its number, which has ten digits.

    `body_bytes`: the body's least length; the prompt is padded to it.
    """  # fmt: skip
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
        **({"seed": seed} if seed is not None else {}),
    }
    missing = body_bytes - len(json.dumps(body))
    if missing > 0:
        body["messages"][1]["content"] += (PROMPT * (missing // len(PROMPT) + 1))[:missing]  # type: ignore[index]
    text = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\naccept: */*\r\n{''.join(f'{header}{EOL}' for header in headers)}"
        f"content-length: {len(text)}\r\n\r\n"
    )
    before, after = (head.encode() + text).split(mark.encode())
    return before, after


class Run:
    """What all connections of one measurement share."""

    def __init__(self, before: bytes, after: bytes, connections: int, seconds: float, most: int = 0) -> None:
        self.before, self.after = before, after
        self.numbers = itertools.count(int(time.time() * 10_000) % 10**9)
        self.until = time.perf_counter() + seconds
        self.most = most or sys.maxsize
        self.latencies_s: list[float] = []
        self.delays_us: list[float] = []
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
        found = CLOCKS.findall(data)
        if found:
            now = time.monotonic_ns()
            self.run.delays_us += [(now - int(written)) / 1e3 for written in found]
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        now, status = time.perf_counter(), self.parser.get_status_code()
        if status != 200:
            self.run.failures.append(f"status {status}")
        self.run.latencies_s.append(now - self.begun)
        if now < self.run.until and len(self.run.latencies_s) < self.run.most:
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
    url: str, *, model: str, key: str, connections: int, seconds: float, stream: bool, most: int = 0,
    seed: int | None = None, body_bytes: int = 0, headers: Sequence[str] = (),
) -> dict[str, object]:  # fmt: skip
    """`most`: over after so many requests where that comes first."""
    where = urlsplit(url)
    before, after = requests(
        where.netloc, model, key, stream=stream, seed=seed, body_bytes=body_bytes, headers=headers
    )
    run = Run(before, after, connections, seconds, most)
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(lambda: Client(run), str(where.hostname), where.port or 80)
    begun = time.perf_counter()
    await run.over
    return {
        "seconds": time.perf_counter() - begun,
        "requests": len(run.latencies_s),
        "failures": len(run.failures),
        "failure": run.failures[0] if run.failures else "",
        "p50_ms": statistics.median(run.latencies_s) * 1e3 if run.latencies_s else None,
        "p99_ms": quantile(run.latencies_s, 0.99) * 1e3 if run.latencies_s else None,
        "delay_p50_us": statistics.median(run.delays_us) if run.delays_us else None,
        "delay_p99_us": quantile(run.delays_us, 0.99) if run.delays_us else None,
    }


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load")
    parser.add_argument("url")
    parser.add_argument("--model", required=True)
    parser.add_argument("--key", default="none")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--requests", dest="most", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--body-bytes", type=int, default=0)
    parser.add_argument("--header", dest="headers", action="append", default=[])
    chosen = vars(parser.parse_args())
    print(json.dumps(uvloop.run(load(chosen.pop("url"), **chosen))))


if __name__ == "__main__":
    main()
