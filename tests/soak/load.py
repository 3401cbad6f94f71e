"""Mixed traffic: every surface, whole and streamed, clients that leave, upstreams that fail, bad input."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import msgspec
from httptools import HttpResponseParser

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "messages": "/v1/messages",
         "responses": "/v1/responses", "embeddings": "/v1/embeddings"}  # fmt: skip
MODELS = ("auto", "auto", "auto", "quick", "kept", "flaky", "cut", "cascade", "dead")
SCRIPTS: dict[str, object] = {
    "quick": [{"text": "a b c d e f"}],
    "slow": [{"text": "a b c d e f g h", "gap_s": 0.003, "delay_s": 0.005}],
    "flaky": [
        {"text": "x"}, {"status": 503}, {"status": 429, "retry_after_s": 0.01}, {"fault": "rst"}, {"text": "y"},
    ] * 200,
    "cut": [{"fault": "cut", "text": "a b c d"}, {"fault": "malformed"}, {"text": "z"}, {"fault": "no_done"}] * 200,
    "dead": [{"fault": "close"}],
}  # fmt: skip
LEAVERS = 0.05
BAD = 0.03


@dataclass(slots=True)
class Soaked:
    """What the clients saw."""

    requests: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    until: float = 0.0
    most: int = 0
    """Requests after which it is over; 0: time decides."""

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.until or 0 < self.most <= self.requests


class Answer:
    """The parser's events of one answer."""

    def __init__(self) -> None:
        self.whole = self.stays = False
        self.parser = HttpResponseParser(self)

    def on_message_complete(self) -> None:
        self.whole = True
        self.stays = self.parser.should_keep_alive()  # afterwards the parser has forgotten it


async def client(url: tuple[str, int], key: str, seed: int, soaked: Soaked) -> None:
    """Keeps its connection as long as the gateway does, and makes a new one where it must."""
    draw = random.Random(seed)
    wires: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while not soaked.is_over:
        if wires is None:
            wires = await asyncio.open_connection(*url)
        reader, writer = wires
        keep = await one(reader, writer, key, draw, soaked)
        soaked.requests += 1
        if not keep:
            writer.transport.abort()
            wires = None
    if wires is not None:
        wires[1].transport.abort()


async def one(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str, draw: random.Random, soaked: Soaked
) -> bool:
    """One request; False: the connection is of no more use."""
    wire = request_of(key, draw)
    writer.write(wire)
    if draw.random() < LEAVERS:
        await asyncio.sleep(draw.random() * 0.02)
        soaked.statuses["left"] += 1
        return False
    answer = Answer()
    try:
        while not answer.whole:
            data = await reader.read(65536)
            if not data:
                soaked.statuses["closed"] += 1
                return False
            answer.parser.feed_data(data)
    except OSError:
        soaked.statuses["reset"] += 1
        return False
    soaked.statuses[str(answer.parser.get_status_code())] += 1
    return answer.stays


def request_of(key: str, draw: random.Random) -> bytes:
    if draw.random() < BAD:
        body, path = draw.choice((b"{", b"[]", b'{"model":"auto"}', b'{"model":1,"messages":[]}')), PATHS["chat"]
    else:
        surface = draw.choices(tuple(PATHS), (5, 2, 3, 2, 1))[0]
        path, body = PATHS[surface], msgspec.json.encode(body_of(surface, draw))
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body


def body_of(surface: str, draw: random.Random) -> dict[str, object]:
    """A fresh question mostly, a known one sometimes; long ones now and then."""
    model = draw.choice(MODELS)
    number = draw.randrange(50) if model == "kept" else draw.randrange(10**9)
    text = f"question {number}: why is it so? " * draw.choice((1, 1, 1, 4, 60))
    stream = draw.random() < 0.4
    if surface == "embeddings":
        return {"model": "quick", "input": [text]}
    field = {"completions": "prompt", "responses": "input"}.get(surface, "messages")
    asked: object = [{"role": "user", "content": text}] if field == "messages" else text
    limit = "max_output_tokens" if surface == "responses" else "max_tokens"
    body: dict[str, object] = {"model": model, field: asked, limit: 32, "stream": stream}
    return body | ({"store": draw.random() < 0.05} if surface == "responses" else {})
