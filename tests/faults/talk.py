"""A client on raw sockets: the bytes that came, and whether the HTTP message is complete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec
from httptools import HttpResponseParser

PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "feedback": "/v1/feedback",
}
QUESTION = "say one two three"


@dataclass(slots=True)
class Heard:
    """An answer as it was received. The parser calls `on_...`."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    heads: int = 0
    whole: bool = False
    """Whether the HTTP message is complete."""

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.heads += 1

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole = True

    @property
    def decision_id(self) -> str:
        return self.headers["x-headgate-decision-id"]

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


def question(surface: str, model: str, *, stream: bool = False, max_tokens: int = 64) -> dict[str, Any]:
    """A small request of one surface."""
    turns = [{"role": "user", "content": QUESTION}]
    asked = {"messages": turns} if surface in ("chat", "messages") else {}
    if surface == "completions":
        asked = {"prompt": QUESTION}  # type: ignore[dict-item]
    if surface == "responses":
        asked = {"input": QUESTION}  # type: ignore[dict-item]
    limit = "max_output_tokens" if surface == "responses" else "max_tokens"
    return {"model": model, limit: max_tokens, "stream": stream, **asked}


def request_bytes(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\ncontent-type: application/json\r\n"
        f"{lines}content-length: {len(body)}\r\n\r\n"
    ).encode() + body


@asynccontextmanager
async def asked(
    url: str, surface: str, body: dict[str, Any], **headers: str
) -> AsyncIterator[tuple[asyncio.StreamReader, Any]]:
    """A connection on which one request was sent: its reader and its StreamWriter. Closed, by RST if unread bytes are
    left, at the end.
    """
    at = urlsplit(url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port, limit=2**24)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        writer.write(request_bytes(PATHS[surface], msgspec.json.encode(body), named))
        yield reader, writer
    finally:
        writer.transport.abort()


async def hear(reader: asyncio.StreamReader) -> Heard:
    """Everything up to the end of the connection."""
    heard = Heard()
    parser = HttpResponseParser(heard)
    while data := await reader.read(65536):
        parser.feed_data(data)
    heard.status = parser.get_status_code() if heard.heads else 0
    return heard


async def ask(url: str, surface: str, body: dict[str, Any], **headers: str) -> Heard:
    async with asked(url, surface, body, **headers) as (reader, _):
        return await hear(reader)
