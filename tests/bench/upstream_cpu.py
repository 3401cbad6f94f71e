"""CPU microseconds of one round trip through the pool, against a scripted upstream in another process.

    python -m tests.bench.upstream_cpu [--requests 20000] [--concurrency 16]

Beside it, as the floor, a bare loop: a protocol that writes the same bytes and counts the answer's bytes.
CPU time of this process only, so a busy machine moves it little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from typing import cast

import uvloop

from gateway.upstream import Endpoint, Pool

HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\n"
    b"content-type: application/json\r\n"
)
TEXT = "Say in a few words what the weather is like today in the north of the country."


def request(*, stream: bool) -> bytes:
    return json.dumps(
        {"model": "m", "stream": stream, "messages": [{"role": "user", "content": TEXT}]}
    ).encode()


class Bare(asyncio.Protocol):
    """Writes, counts, writes again."""

    def __init__(self, wire: bytes, turns: int, length: int) -> None:
        self.wire, self.turns, self.length, self.got = wire, turns, length, 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.transport.write(self.wire)

    def data_received(self, data: bytes) -> None:
        self.got += len(data)
        if self.got >= self.length:
            self.got = 0
            self.turns -= 1
            if self.turns:
                self.transport.write(self.wire)
            else:
                self.done.set_result(None)


async def length_of(endpoint: Endpoint, wire: bytes) -> int:
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    writer.write(wire)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return len(head) + int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])


async def bare(endpoint: Endpoint, requests: int, concurrency: int) -> float:
    body = request(stream=False)
    wire = b"%bcontent-length: %d\r\n\r\n%b" % (HEAD, len(body), body)
    length = await length_of(endpoint, wire)
    loop = asyncio.get_running_loop()
    begun = time.process_time()
    made = [
        await loop.create_connection(
            lambda: Bare(wire, requests // concurrency, length), endpoint.host, endpoint.port
        )
        for _ in range(concurrency)
    ]
    await asyncio.gather(*(protocol.done for _, protocol in made))
    spent = time.process_time() - begun
    for transport, _ in made:
        transport.close()
    return spent / requests * 1e6


async def whole(pool: Pool, requests: int, concurrency: int) -> float:
    body = request(stream=False)

    async def client() -> None:
        for _ in range(requests // concurrency):
            response = await pool.send(HEAD, body, timeout_s=30)
            await response.read(1_000_000)

    begun = time.process_time()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return (time.process_time() - begun) / requests * 1e6


async def streamed(pool: Pool, requests: int, concurrency: int) -> tuple[float, float]:
    """Per chunk taken, and per stream."""
    body = request(stream=True)
    chunks = 0

    async def client() -> None:
        nonlocal chunks
        for _ in range(requests // concurrency):
            response = await pool.send(HEAD, body, timeout_s=30)
            while await response.chunk(30):
                chunks += 1

    begun = time.process_time()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    spent = (time.process_time() - begun) * 1e6
    return spent / chunks, spent / requests


async def measure(url: str, requests: int, concurrency: int) -> dict[str, float]:
    endpoint = Endpoint.parse(url)
    pool = Pool(endpoint, max_connections=concurrency, connect_timeout_s=5)
    await whole(pool, requests // 10, concurrency)
    floors, wholes = [], []
    for _ in range(3):
        floors.append(await bare(endpoint, requests, concurrency))
        wholes.append(await whole(pool, requests, concurrency))
    per_chunk, per_stream = await streamed(pool, requests // 10, concurrency)
    assert pool.connects == concurrency, pool.stats
    await pool.aclose()
    floor, cost = sorted(floors)[1], sorted(wholes)[1]
    return {
        "bare_us": floor,
        "pool_us": cost,
        "added_us": cost - floor,
        "us_per_chunk": per_chunk,
        "us_per_stream": per_stream,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=16)
    args = parser.parse_args()
    scripts = json.dumps({"m": [{"text": "It is raining and will go on raining until the evening."}]})
    command = [sys.executable, "-m", "gateway.providers.scripted", "--scripts", scripts]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        try:
            result = uvloop.run(measure(url, args.requests, args.concurrency))
        finally:
            server.terminate()
    print(json.dumps({name: round(value, 1) for name, value in result.items()}))


if __name__ == "__main__":
    main()
