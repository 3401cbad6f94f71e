"""Mixed traffic: every surface, whole and streamed, clients that disconnect, upstreams that fail, bad input."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
from httptools import HttpResponseParser

from gateway.stored.recent_responses import REMEMBERED
from routers.embedding import MEMO_STRETCHES

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
CLOSES = 0.02
"""Share of requests after which a client reconnects without need."""
KNOWN = 50
"""Number of questions that are repeated, so that their answers are cached."""
LENGTHS = (1, 4, 60)
WORDS = 600
"""Number of different words in a message: as many as a router reads."""
ALL_WORDS = MEMO_STRETCHES + WORDS


@dataclass(slots=True)
class Soaked:
    """What the clients saw."""

    requests: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    until: float = 0.0
    most: int = 0
    """Number of requests after which the load ends; 0 means that the time decides."""

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
    """One client: it keeps its connection as long as the gateway does, and reconnects where necessary."""
    draw = random.Random(seed)
    wires: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while not soaked.is_over:
        if wires is None:
            wires = await asyncio.open_connection(*url)
        reader, writer = wires
        keep = await one(reader, writer, key, draw, soaked)
        soaked.requests += 1
        if not keep or draw.random() < CLOSES:
            writer.transport.abort()
            wires = None
    if wires is not None:
        wires[1].transport.abort()


async def one(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str, draw: random.Random, soaked: Soaked
) -> bool:
    """One request; returns False if the connection can't be used any more."""
    writer.write(request_of(key, draw))
    if draw.random() < LEAVERS:
        await asyncio.sleep(draw.random() * 0.02)
        soaked.statuses["left"] += 1
        return False
    try:
        answer = await answered(reader)
    except OSError:
        soaked.statuses["reset"] += 1
        return False
    soaked.statuses[str(answer.parser.get_status_code()) if answer.whole else "closed"] += 1
    return answer.stays


async def answered(reader: asyncio.StreamReader) -> Answer:
    """As much of the answer as arrived."""
    answer = Answer()
    while not answer.whole and (data := await reader.read(65536)):
        answer.parser.feed_data(data)
    return answer


async def fill_up(url: tuple[str, int], key: str) -> None:
    """Every known question once in every form, and as many stored responses and different words as are kept in memory.

    These memories then neither grow nor shrink.
    """
    surfaces = [surface for surface in PATHS if surface != "embeddings"]
    forms = [(surface, length, stream) for surface in surfaces for length in LENGTHS for stream in (False, True)]
    bodies = [
        (surface, question(surface, "kept", number, length, stream=stream))
        for surface, length, stream in forms
        for number in range(KNOWN)
    ]
    bodies += [
        ("responses", question("responses", "quick", number, LENGTHS[number % 3], stream=False, store=True))
        for number in range(REMEMBERED)
    ]
    for place in range(0, ALL_WORDS, WORDS):
        bodies.append(("chat", said(f"word{number}" for number in range(place, place + WORDS))))
    reader, writer = await asyncio.open_connection(*url)
    for surface, body in bodies:
        writer.write(head_of(key, surface, body))
        answer = await answered(reader)
        assert answer.parser.get_status_code() == 200 and answer.stays, (surface, answer.parser.get_status_code())
    writer.transport.abort()


def said(words: Iterable[str]) -> bytes:
    return msgspec.json.encode({"model": "auto", "messages": [{"role": "user", "content": " ".join(words)}]})


def request_of(key: str, draw: random.Random) -> bytes:
    if draw.random() < BAD:
        return head_of(key, "chat", draw.choice((b"{", b"[]", b'{"model":"auto"}', b'{"model":1,"messages":[]}')))
    surface = draw.choices(tuple(PATHS), (5, 2, 3, 2, 1))[0]
    model = draw.choice(MODELS)
    number = draw.randrange(KNOWN if model == "kept" else 10**9)
    length, stream, store = draw.choice((1, 1, *LENGTHS)), draw.random() < 0.4, draw.random() < 0.05
    return head_of(key, surface, question(surface, model, number, length, stream=stream, store=store))


def head_of(key: str, surface: str, body: bytes) -> bytes:
    """The complete request."""
    return (
        f"POST {PATHS[surface]} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


def question(surface: str, model: str, number: int, length: int, *, stream: bool, store: bool = False) -> bytes:
    text = f"question {number}: why is it so? " * length
    if surface == "embeddings":
        return msgspec.json.encode({"model": "quick", "input": [text]})
    field = {"completions": "prompt", "responses": "input"}.get(surface, "messages")
    asked: object = [{"role": "user", "content": text}] if field == "messages" else text
    limit = "max_output_tokens" if surface == "responses" else "max_tokens"
    body: dict[str, object] = {"model": model, field: asked, limit: 32, "stream": stream}
    return msgspec.json.encode(body | ({"store": store} if surface == "responses" else {}))
