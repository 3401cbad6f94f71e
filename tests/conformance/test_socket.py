"""HTTP on raw sockets: requests that no client library sends, or only old ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway import http_protocol
from tests.live import Live, live

BODY = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "hello"}]}).encode()
STREAM = BODY[:-1] + b',"stream":true}'


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Live]:
    """A gateway; checks afterwards that nothing is held."""
    async with live(tmp_path, server={"max_body_bytes": 100_000}) as built:
        yield built
        await built.rest()


def post(body: bytes = BODY, *lines: bytes, version: bytes = b"1.1", path: bytes = b"/v1/chat/completions") -> bytes:
    head = [b"POST %b HTTP/%b" % (path, version), b"host: x", b"content-type: application/json", *lines]
    return b"\r\n".join([*head, b"content-length: %d" % len(body), b"", body])


async def talk(gateway: Live, *pieces: bytes, end: bool = False) -> bytes:
    """Everything that is received until the gateway closes the connection or stays silent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    if end:
        writer.write_eof()
    heard = b""
    try:
        while data := await asyncio.wait_for(reader.read(65536), 20.0):
            heard += data
    except (TimeoutError, ConnectionError):
        pass
    writer.close()
    return heard


LAST = post(BODY, b"connection: close")


async def test_keep_alive(gateway: Live) -> None:
    """One connection serves several requests in turn."""
    heard = await talk(gateway, post(), post(STREAM), LAST)
    assert heard.count(b"HTTP/1.1 200 OK") == 3 and heard.count(b'"content":"hello"') >= 2
    assert heard.count(b"data: [DONE]") == 1


async def test_pipelining(gateway: Live) -> None:
    """Pipelined requests are answered in order, streams included."""
    first, last = (BODY.replace(b"hello", word) for word in (b"first", b"last"))
    heard = await talk(gateway, post(first) + post(STREAM) + post(last, b"connection: close"))
    assert heard.count(b"HTTP/1.1 200 OK") == 3
    assert heard.index(b'"first"') < heard.index(b"[DONE]") < heard.index(b'"last"')


async def test_http_1_0(gateway: Live) -> None:
    """An HTTP/1.0 client gets a content length, and the connection is closed after the answer."""
    heard = await talk(gateway, post(version=b"1.0"))
    head, _, body = heard.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b"chunked" not in head
    assert json.loads(body)["choices"][0]["message"]["content"] == "hello"


KEEP = b"connection: keep-alive"
AZURE = b"/openai/deployments/echo/chat/completions?api-version=2024-10-21"


@pytest.mark.parametrize("path", [b"/v1/chat/completions", AZURE])
@pytest.mark.parametrize("behind", [0, 1])
async def test_a_stream_over_http_1_0(gateway: Live, path: bytes, behind: int) -> None:
    """An HTTP/1.0 client gets a stream without chunks that ends with the connection, also after another request."""
    heard = await talk(gateway, post(path=path) * behind + post(STREAM, KEEP, version=b"1.0", path=path))
    head, _, body = heard[heard.rindex(b"HTTP/1.1 200") :].partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head and b"connection: close" in head
    assert body.startswith(b"data: {") and body.endswith(b"\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_other_paths_over_http_1_0(gateway: Live, method: bytes) -> None:
    """An answer has a content length, and the connection is closed after it, whatever was requested."""
    heard = await talk(gateway, method + b" /v1/models HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    head, _, body = heard.partition(b"\r\n\r\n")
    length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0])
    assert head.startswith(b"HTTP/1.1 200") and b"connection: close" in head
    assert len(body) == (length if method == b"GET" else 0)


async def test_http_1_0_expects_nothing(gateway: Live) -> None:
    """An HTTP/1.0 client gets no interim answer (RFC 9110, 10.1.1)."""
    heard = await talk(gateway, post(BODY, b"expect: 100-continue", version=b"1.0"))
    assert heard.startswith(b"HTTP/1.1 200") and b"100 Continue" not in heard


async def test_expect_100(gateway: Live) -> None:
    """A client that waits for `100 Continue` gets it."""
    whole = post(BODY, b"expect: 100-continue", b"connection: close")
    head, _, body = whole.partition(b"\r\n\r\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    writer.write(head + b"\r\n\r\n")
    assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 100")
    writer.write(body)
    assert b'"content":"hello"' in await asyncio.wait_for(reader.read(), 60)
    writer.close()


async def test_a_body_byte_by_byte(gateway: Live) -> None:
    """A body that comes byte by byte is accepted."""
    heard = await talk(gateway, *(LAST[at : at + 7] for at in range(0, len(LAST), 7)))
    assert heard.startswith(b"HTTP/1.1 200") and b'"content":"hello"' in heard


async def test_a_chunked_body(gateway: Live) -> None:
    """A chunked body is accepted."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(BODY[at : at + 9]), BODY[at : at + 9]) for at in range(0, len(BODY), 9))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    heard = await talk(gateway, head + chunks + b"0\r\n\r\n")
    assert heard.startswith(b"HTTP/1.1 200") and b'"content":"hello"' in heard


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        LAST.replace(b"HTTP/1.1", b"HTTP/9.9"),
        LAST.replace(b"host: x", b"ho st: x"),
        LAST.replace(b"host: x", b"x-a: b\x00c"),
        LAST.replace(b"host: x", b"x-a: b\rx-evil: 1"),
        LAST.replace(b"content-length: ", b"content-length: -"),
        LAST.replace(b"content-length: ", b"content-length: 9\r\ncontent-length: "),
        LAST.replace(b"content-length", b"transfer-encoding: chunked\r\ncontent-length"),
        LAST.replace(b"content-length", b"transfer-encoding: gzip, identity\r\ncontent-length"),
        post(b"", b"transfer-encoding: chunked").replace(b"content-length: 0\r\n", b"") + b"zz\r\nhello",
    ],
    ids=["no HTTP", "TLS", "version", "name", "NUL", "CR", "negative length", "two lengths", "both framings",
         "odd coding", "bad chunk"],
)  # fmt: skip
async def test_what_is_not_http_is_refused(gateway: Live, request_bytes: bytes) -> None:
    """Malformed and ambiguous messages get a 400 or nothing; none reaches a model, and no further request is read."""
    heard = await talk(gateway, request_bytes, end=True)
    assert not heard or heard.startswith(b"HTTP/1.1 400")
    assert heard.count(b"HTTP/1.1") <= 1 and b"x-evil" not in heard
    assert gateway.upstream.seen.requests == 0


@pytest.mark.parametrize(
    "lines",
    [
        (b"x-headgate-models: echo\xff",),
        (b"x-headgate-route: auto%0d%0ax-evil: 1",),
        (b"x-headgate-cost-weight: \xf6",),
    ],
)
async def test_odd_header_values_are_refused(gateway: Live, lines: tuple[bytes, ...]) -> None:
    """An invalid value of a gateway header is an error in JSON, and no value is returned as a header."""
    heard = await talk(gateway, post(BODY, *lines, b"connection: close"))
    head, _, body = heard.partition(b"\r\n\r\n")
    assert head.split(b" ", 2)[1] in (b"400", b"404") and b"x-evil" not in head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


async def test_a_header_for_the_upstream_cannot_smuggle(gateway: Live) -> None:
    """A forwarded value is one line: a folded one is refused or joined, and never becomes another header."""
    await talk(gateway, post(BODY, b"traceparent: 00-a\r\n x-evil: 1", b"connection: close"))
    assert all("x-evil" not in seen["headers"] for seen in gateway.upstream.seen.recent)


@pytest.mark.parametrize("piece", [LAST[:40], LAST[:-5], post(STREAM)[:-1], b""])
async def test_a_client_that_leaves_early(gateway: Live, piece: bytes) -> None:
    """An incomplete request gets no answer and no attempt, and nothing is held."""
    _, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    writer.write(piece)
    await writer.drain()
    writer.close()
    await gateway.rest()
    assert gateway.upstream.seen.requests == 0


async def test_a_length_that_is_too_large(gateway: Live) -> None:
    """A content length above the limit is refused before the body is sent."""
    head = post().partition(b"content-length")[0] + b"content-length: 99999999999\r\n\r\n"
    heard = await talk(gateway, head, end=True)
    assert heard.startswith(b"HTTP/1.1 413") and json.loads(heard.partition(b"\r\n\r\n")[2])["error"]["code"]


async def test_headers_without_end(gateway: Live) -> None:
    """Headers are limited in size."""
    filler = b"".join(b"x-filler-%d: %b\r\n" % (number, b"f" * 1000) for number in range(2000))
    try:
        heard = await talk(gateway, post().partition(b"content-length")[0] + filler + b"\r\n", end=True)
    except ConnectionError:
        heard = b""
    assert not heard or heard.startswith(b"HTTP/1.1 4")
    assert gateway.upstream.seen.requests == 0


@pytest.mark.parametrize("asked", [BODY, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize("behind", [b"", post(path=AZURE)], ids=["one", "two"])
async def test_rubbish_behind_a_request(gateway: Live, asked: bytes, behind: bytes) -> None:
    """The first request is answered completely before what follows it is refused."""
    heard = await talk(gateway, post(asked) + behind + b"rubbish\r\n\r\n")
    assert heard.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 4" not in heard
    assert heard.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n" if asked is STREAM and not behind else b"}")
    assert heard.count(b"HTTP/1.1 200") == (2 if behind else 1)


CHUNKED = b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n"


@pytest.mark.parametrize("path", [b"/v1/chat/completions", AZURE])
async def test_trailers_are_not_headers(gateway: Live, path: bytes) -> None:
    """Trailers are read and ignored, and the next request follows them."""
    trailers = b"x-headgate-models: none\r\nx-headgate-route: none\r\n\r\n"
    heard = await talk(gateway, CHUNKED % (path, len(BODY), BODY) + trailers + LAST)
    assert heard.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize("path", [b"/v1/chat/completions", AZURE, b"/v1/files"])
@pytest.mark.parametrize("trailer", [b"x-t: " + b"t" * 1000, b"t" * 1000, b"".join(b"x: y\r\n" for _ in range(150))])
async def test_trailers_without_end(gateway: Live, path: bytes, trailer: bytes) -> None:
    """Trailers are limited in size, as headers are."""
    heard = await talk(gateway, CHUNKED % (path, len(BODY), BODY), *[trailer] * 1000)
    assert heard.startswith(b"HTTP/1.1 431")
    assert gateway.upstream.seen.requests == 0


@pytest.mark.parametrize("path", [b"/v1/chat/completions", AZURE, b"/v1/files"])
async def test_a_body_that_stands_still(gateway: Live, path: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that stops coming times out; one that comes slowly doesn't."""
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    async with asyncio.timeout(15):
        assert await talk(gateway, post(path=path)[:-9]) == b""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    for at in range(0, len(LAST), 10):
        writer.write(LAST[at : at + 10])
        await asyncio.sleep(0.0 if at < LAST.index(b"{") else 0.1)
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_line_too_many_cuts_no_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty line after a body, as old clients send it (RFC 9112, 2.2), doesn't start the timeout of a next head."""
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.1)
    async with live(tmp_path, scripts={"echo": [{"text": "one two three four", "gap_s": 0.2}]}) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
        writer.write(post(STREAM))
        heard = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\r\n")
        heard = await reader.readuntil(b"0\r\n\r\n")
        writer.close()
        await gateway.rest()
    assert b"data: [DONE]" in heard
