"""Both ports under bad input: every case is one request, and no answer may be a fault of the gateway (5xx).

Cases come from the ports' own OpenAPI documents by schemathesis, conforming and violating, from damaged bodies
(tests/fuzz/junk.py), and as raw bytes on a socket.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import hypothesis
import requests
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode

from gateway.admin.app import make_admin
from gateway.admin.services import AdminServices
from gateway.app import build, close
from gateway.config.load import parse
from gateway.journal.schema import migrate, open_engine
from gateway.journal.ship import Shipper
from gateway.journal.spool import spool_dir
from gateway.journal.store import Store
from gateway.providers.scripted import ScriptedServer
from gateway.serve.worker import server_config
from tests.fuzz.junk import GOOD, bad_json
from tests.live import table

SURFACES = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "embeddings": "/v1/embeddings",
            "responses": "/v1/responses", "messages": "/v1/messages"}  # fmt: skip
MASTER = "hg-master"
BASE = "http://127.0.0.1"
HEADERS = (
    "x-headgate-cost-weight", "x-headgate-min-quality", "x-headgate-max-cost-usd", "x-headgate-max-latency-s",
    "x-headgate-models", "x-headgate-cache", "x-headgate-route", "x-stainless-read-timeout", "anthropic-version",
    "content-type", "authorization", "x-api-key", "idempotency-key", "last-event-id", "accept", "traceparent",
)  # fmt: skip
WORDS = (
    "", "1", "-1", "nan", "inf", "1e999", "auto", "echo", "exact", "a,b", "\xff\xfe", "x" * 300, "0", "{}",
    "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "Bearer x", "Bearer hg-master", "00-1-2-3",
    "only-if-cached", "max-age=x",
)  # fmt: skip
FIRST_LINES = (
    b"POST", b"GET / HTTP/1.1", b"POST /v1/x HTTP/9.9", b"\x16\x03\x01\x02", b"PRI * HTTP/2.0", b"CONNECT x:1 HTTP/1.1",
    b"POST /%ff%00%zz?%80 HTTP/1.1", b"OPTIONS * HTTP/1.1", b" / ",
)  # fmt: skip
LENGTHS = (b"-1", b"x", b"1, 2", b"99999999999", b"0", b"", b"5", b"1e3")
LEAVES_S = 1.0
"""Seconds after which a client that is still waiting leaves, so that endless streams end."""
REFUSALS_OF_OURS = (501, 504)
"""Status codes that are no fault: not implemented here, not in the cache, and 503 where no worker is running."""


@dataclass(slots=True)
class Said:
    """An answer's status and body."""

    status: int = 0
    body: bytes = b""


@dataclass(slots=True)
class Tally:
    """Counts the outcomes so far."""

    cases: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def note(self, said: Said, what: str) -> None:
        self.cases += 1
        self.statuses[said.status] = self.statuses.get(said.status, 0) + 1
        if said.status >= 500 and said.status not in REFUSALS_OF_OURS and b'"workers_away"' not in said.body:
            self.faults.append(f"{said.status} {what[:600]} -> {said.body[:300]!r}")


class Ports:
    """Both applications in this process, called without a socket; the data port also listens on one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, data: Any, admin: Any, port: int) -> None:
        self.loop, self.data, self.admin, self.port = loop, data, admin, port

    def ask(self, app: Any, method: str, target: str, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> Said:
        return self.loop.run_until_complete(asyncio.wait_for(ask(app, method, target, headers, body), 60))

    def data_document(self) -> dict[str, Any]:
        return dict(json.loads(self.ask(self.data, "GET", "/openapi.json", [], b"").body))

    def admin_document(self) -> dict[str, Any]:
        return dict(self.admin.openapi())


@contextmanager
def ports(folder: Path) -> Iterator[Ports]:
    """A gateway with a scripted upstream that answers everything, with routes, a cache, keys and a journal."""
    with ExitStack() as stack:
        loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        upstream = ScriptedServer({"default": [{}]})
        loop.run_until_complete(upstream.__aenter__())
        stack.callback(lambda: loop.run_until_complete(upstream.aclose()))
        extra = {
            "auth": {"master_key": MASTER},
            "routes": [{"name": "auto", "models": ["echo", "claude-echo"], "router": "cheapest", "cache": "exact"}],
        }
        models = ["echo", {"name": "claude-echo", "provider": "claude"}]
        config, problems = parse(table(upstream.url, folder, models, extra), {"UP_KEY": "sk"})
        assert config is not None, problems
        migrate(str(config.storage.url))
        app = build(config)
        stack.callback(lambda: loop.run_until_complete(close(app)))
        engine = open_engine(str(config.storage.url))
        admin = AdminServices(
            config, Store(engine), Shipper(spool_dir(config.server.run_dir), engine).state
        )
        admin.opened = True
        stack.callback(admin.store.close)
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        server = uvicorn.Server(server_config(app, config.server))
        serving = loop.create_task(server._serve([sock]))
        while not server.started:
            loop.run_until_complete(asyncio.sleep(0.005))
        yield Ports(loop, app, make_admin(admin), sock.getsockname()[1])
        server.should_exit = True
        loop.run_until_complete(serving)


async def ask(app: Any, method: str, target: str, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> Said:
    """One request to an ASGI application."""
    said, at = Said(), urlsplit(target)
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.sleep(LEAVES_S)
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            said.status = message["status"]
        else:
            said.body += message.get("body", b"")

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": unquote(at.path), "raw_path": at.path.encode(), "query_string": at.query.encode(), "root_path": "",
        "headers": list(headers), "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    try:
        await app(scope, receive, send)
    except Exception as fault:  # the server would answer 500
        ours = [one for one in traceback.extract_tb(fault.__traceback__) if "/gateway/" in one.filename]
        where = f"{ours[-1].filename.partition('/gateway/')[2]}:{ours[-1].lineno}" if ours else ""
        return Said(500, f"{type(fault).__name__} {fault} in {where}".encode(errors="replace"))
    return said


# ---- damaged bodies


def bad_bodies(here: Ports, cases: int, tally: Tally, seed: int = 0) -> None:
    """Valid requests with damaged bodies, and sometimes damaged headers."""
    for number in range(cases):
        draw = random.Random(f"{seed}.{number}")
        surface = draw.choice(tuple(SURFACES))
        body = bad_json(dict(GOOD[surface], model=draw.choice(("echo", "claude-echo", "auto"))), draw)
        headers = [(b"authorization", f"Bearer {MASTER}".encode()), (b"content-type", b"application/json")]
        if draw.random() < 0.2:
            name, value = draw.choice(HEADERS), draw.choice(WORDS)
            headers = [*headers, (name.encode(), value.encode("latin-1", "replace"))]
        said = here.ask(here.data, "POST", SURFACES[surface], headers, body)
        tally.note(said, f"{surface} {body!r} {headers[2:]}")


# ---- raw bytes


def bad_wire(here: Ports, cases: int, tally: Tally, seed: int = 0) -> None:
    """Requests with invalid HTTP: the server answers 4xx or closes the connection, and serves the next request."""
    here.loop.run_until_complete(_bad_wire(here, cases, tally, seed))


async def _bad_wire(here: Ports, cases: int, tally: Tally, seed: int) -> None:
    for first in range(0, cases, 16):
        numbers = range(first, min(cases, first + 16))
        await asyncio.gather(*(_one_wire(here, random.Random(f"{seed}.{number}"), tally) for number in numbers))


async def _one_wire(here: Ports, draw: random.Random, tally: Tally) -> None:
    wire = spoilt_wire(draw)
    reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
    writer.write(wire)
    writer.write_eof()
    try:
        answer = await asyncio.wait_for(reader.read(65536), 30)
    except OSError:
        answer = b""
    writer.transport.abort()
    status = int(answer[9:12]) if answer[:5] == b"HTTP/" and answer[9:12].isdigit() else 0
    tally.note(Said(status, answer), repr(wire))


def spoilt_wire(draw: random.Random) -> bytes:
    """A request's bytes with one or two faults in its head."""
    surface = draw.choice(tuple(SURFACES))
    body = json.dumps(dict(GOOD[surface], model="echo")).encode()
    lines = [
        b"POST %b HTTP/1.1" % SURFACES[surface].encode(), b"host: x", b"authorization: Bearer " + MASTER.encode(),
        b"content-type: application/json", b"content-length: %d" % len(body), b"connection: close",
    ]  # fmt: skip
    for _ in range(draw.choice((1, 1, 2))):
        how, at = draw.randrange(9), draw.randrange(len(lines))
        if how == 0:
            lines[0] = draw.choice(FIRST_LINES)
        elif how == 1:
            lines[4] = b"content-length: " + draw.choice(LENGTHS)
        elif how == 2:
            lines.insert(at + 1, b"transfer-encoding: " + draw.choice((b"chunked", b"gzip", b"chunked, chunked", b"x")))
        elif how == 3:
            lines.insert(at + 1, draw.randbytes(draw.choice((1, 30, 3000))).replace(b"\n", b"."))
        elif how == 4:
            lines.insert(at + 1, b"x-" + b"a" * draw.choice((10, 9000)) + b": " + b"b" * draw.choice((1, 70_000)))
        elif how == 5:
            lines += [b"x-%d: y" % i for i in range(draw.choice((5, 300)))]
        elif how == 6:
            lines.insert(at + 1, b"expect: " + draw.choice((b"100-continue", b"x")))
        elif how == 7:
            lines.insert(at + 1, b"upgrade: " + draw.choice((b"websocket", b"h2c")))
        else:
            del lines[at]
    end = b"\n" if draw.random() < 0.1 else b"\r\n"
    wire = end.join(lines) + end + end + body
    return wire[: draw.randrange(len(wire))] if draw.random() < 0.2 else wire


# ---- by the OpenAPI document


def by_document(
    here: Ports, app: Any, document: dict[str, Any], cases: int, tally: Tally, seed: int = 0
) -> None:
    """Cases for every operation, half of them conforming and half violating."""
    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]
    each = max(1, cases // (2 * len(operations)))
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            _cases_of(here, app, operation, mode, each, tally, seed)


def _cases_of(here: Ports, app: Any, operation: Any, mode: GenerationMode, count: int, tally: Tally, seed: int) -> None:
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
        return

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        words = case.as_transport_kwargs(base_url=BASE)
        ready = requests.Request(**{k: v for k, v in words.items() if k in _REQUEST}).prepare()
        headers = [(_bytes(k).lower(), _bytes(v)) for k, v in ready.headers.items() if k.lower() != "authorization"]
        headers.append((b"authorization", f"Bearer {MASTER}".encode()))
        headers.append((b"host", b"127.0.0.1"))
        body = ready.body or b""
        said = here.ask(app, ready.method or "GET", ready.path_url, headers, _bytes(body))
        tally.note(said, f"{ready.method} {ready.path_url} {body!r}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            one()
        except (hypothesis.errors.Unsatisfiable, hypothesis.errors.FailedHealthCheck):
            return


_REQUEST = ("method", "url", "headers", "files", "data", "params", "auth", "cookies", "json")


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
