"""Protection against misuse: the points of deploy/THREATS.md that no other test covers."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import http_protocol
from gateway.batch.endpoint_api import client_of
from gateway.config.load import parse
from gateway.config.types import Auth, Embedding, KeyConfig, ProviderConfig, Secret, Server
from gateway.embedders import EmbeddingFailed, Endpoint
from gateway.errors import Unauthorized
from gateway.keys import Keyring, new_key
from gateway.providers.openai import OpenAIProvider
from gateway.serve.tls import tls_problems
from gateway.upstream.reach import names_inner, refusal
from tests.live import live

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
PATH = "/v1/chat/completions"


async def talk(url: str, data: bytes) -> bytes:
    """Everything that is received until the server closes the connection."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        await writer.drain()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("where", ["lane", "elsewhere", "endless"])
async def test_headers_have_a_limit(tmp_path: Path, where: str) -> None:
    """More than 64 KiB of them are answered with 431 and the connection ends, whether or not they are complete."""
    line = b"GET /v1/models HTTP/1.1\r\n" if where == "elsewhere" else b"POST /v1/chat/completions HTTP/1.1\r\n"
    head = line + b"host: x\r\n" + b"x-filler: " + b"a" * 70_000
    async with live(tmp_path) as gateway:
        heard = await talk(gateway.url, head if where == "endless" else head + b"\r\n\r\n")
        assert heard.startswith(b"HTTP/1.1 431 ") and b"headers_too_large" in heard
        much = b"host: x\r\nconnection: close\r\nx-filler: " + b"a" * 60_000 + b"\r\n\r\n"
        fitting = await talk(gateway.url, line + much)
        assert not fitting.startswith(b"HTTP/1.1 431 ")


async def test_bodies_have_a_limit(tmp_path: Path) -> None:
    """They are answered with 413, by their stated length or by what arrives."""
    async with live(tmp_path, server={"max_body_bytes": 1000}) as gateway, httpx.AsyncClient() as client:
        stated = await client.post(gateway.url + PATH, content=b"x" * 1001)

        async def chunks() -> Any:
            for _ in range(30):
                yield b"x" * 50

        streamed = await client.post(gateway.url + PATH, content=chunks())
        assert (stated.status_code, streamed.status_code) == (413, 413)


async def test_an_incomplete_head_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that sends nothing, or headers without end, is closed."""
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.1)
    async with live(tmp_path) as gateway, asyncio.timeout(20):
        assert await talk(gateway.url, b"") == b""
        assert await talk(gateway.url, b"POST /v1/chat/completions HTTP/1.1\r\nhost:") == b""


async def test_no_url_of_a_request_is_fetched(tmp_path: Path) -> None:
    """An image's URL is passed on unchanged, and nothing connects to it, whatever its name."""
    visits = 0

    async def visit(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        writer.close()

    server = await asyncio.start_server(visit, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/picture.png"
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    source = {"type": "image", "source": {"type": "url", "url": url}}
    async with server, live(tmp_path) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        chat = {"model": "echo", "messages": [{"role": "user", "content": parts}]}
        answer = await client.post(PATH, json=chat)
        seen = [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
        await client.post("/v1/responses", json={"model": "echo", "input": seen})
        messages = {"model": "echo", "max_tokens": 9, "messages": [{"role": "user", "content": [source, parts[0]]}]}
        await client.post("/v1/messages", json=messages)
        await client.post("/v1/messages/count_tokens", json=messages)
        assert answer.status_code == 200
        assert url.encode() in str(gateway.upstream.seen.recent).encode()
    assert visits == 0


@pytest.mark.parametrize(
    ("address", "inner", "is_refused"),
    [
        ("8.8.8.8", False, False), ("2606:4700::1111", False, False),
        ("10.0.0.5", False, True), ("10.0.0.5", True, False), ("127.0.0.1", False, True), ("127.0.0.1", True, False),
        ("::1", False, True), ("::ffff:10.0.0.5", False, True), ("fd12::1", False, True), ("100.64.0.1", False, True),
        ("169.254.169.254", True, True), ("fe80::1%eth0", True, True), ("::ffff:169.254.169.254", True, True),
        ("64:ff9b::a9fe:a9fe", True, True), ("2002:a9fe:a9fe::1", True, True), ("64:ff9b::808:808", False, False),
        ("64:ff9b::10.0.0.5", False, True),
        ("fd00:ec2::254", True, True), ("0.0.0.0", True, True), ("224.0.0.1", True, True), ("nonsense", True, True),
    ],
)  # fmt: skip
def test_addresses_of_providers(address: str, inner: bool, is_refused: bool) -> None:
    """Internal addresses are reached only if the URL states one; metadata and link-local ones never are."""
    assert bool(refusal(address, inner=inner)) is is_refused


def test_internal_names_of_providers() -> None:
    """Local names and private addresses are internal; a public name is not, whatever words it contains."""
    assert all(map(names_inner, ("10.0.0.5", "localhost", "vllm", "vllm.models.svc", "gpu.internal", "::1")))
    assert not any(map(names_inner, ("api.acme.example", "internal.example.com")))


@pytest.mark.parametrize(("may", "status"), [(False, 502), (True, 200)])
async def test_a_public_name_that_resolves_to_an_internal_address_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may: bool, status: int
) -> None:
    """It is refused before a byte of the request is sent, unless the provider is configured as internal."""
    look_up = socket.getaddrinfo

    def resolved(host: str, *words: Any, **more: Any) -> Any:
        return look_up("127.0.0.1" if host == "api.acme.example" else host, *words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    async with live(tmp_path) as outer:
        port = outer.upstream.url.rpartition(":")[2]
        folder = tmp_path / "second"
        folder.mkdir()
        provider = {"name": "far", "kind": "openai", "base_url": f"http://api.acme.example:{port}",
                    "private_network": may}  # fmt: skip
        models = [{"name": "echo", "provider": "far"}]
        async with live(folder, models=models, providers=[provider]) as gateway, httpx.AsyncClient() as client:
            before = outer.upstream.seen.requests
            answer = await client.post(gateway.url + PATH, json=CHAT, timeout=30)
            assert answer.status_code == status, answer.text
            assert may or "127.0.0.1 is not a public address" in answer.text
            assert outer.upstream.seen.requests - before == (1 if may else 0)


@pytest.mark.parametrize("may", [False, True])
async def test_batches_vectors_and_probes_reach_no_internal_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may: bool
) -> None:
    """Neither the batch endpoint, the embedding endpoint nor an engine's metrics page is reached at an internal address
    by a public name, so prompts and credentials aren't sent there.
    """
    real = socket.getaddrinfo

    def resolved(host: Any, *args: Any, **more: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        return real("127.0.0.1" if name == "api.acme.example" else host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    async with live(tmp_path) as outer:
        url = outer.upstream.url.replace("127.0.0.1", "api.acme.example")
        before = outer.upstream.seen.requests
        config = ProviderConfig("far", kind="openai", base_url=url, private_network=may)
        async with client_of(OpenAIProvider(config, base_url=url)) as client:
            if may:
                assert (await client.get("/models")).status_code < 500
            else:
                with pytest.raises(httpx.ConnectError, match="not a public address"):
                    await client.get("/models")
        embedding = Embedding(kind="openai", base_url=url, model="m", dims=3, private_network=may)
        with pytest.raises(EmbeddingFailed, match="shape|HTTPStatusError|KeyError" if may else "ConnectError"):
            await asyncio.to_thread(Endpoint(embedding), "a secret prompt")
        assert (outer.upstream.seen.requests > before) is may


@pytest.mark.parametrize("section", ["providers", "embedding"])
def test_a_configuration_may_not_name_cloud_metadata(section: str) -> None:
    """`check-config` refuses it with its path."""
    named = {"kind": "openai", "base_url": "http://169.254.169.254/v1", "model": "m", "dims": 3}
    provider = {"name": "p", "kind": "openai", "base_url": named["base_url"]}
    problems = parse({section: [provider] if section == "providers" else named}, {})[1]
    where = "providers[0]" if section == "providers" else "embedding"
    assert any(line.startswith(f"{where}.base_url") and "metadata" in line for line in problems)


async def test_a_clients_key_is_not_forwarded(tmp_path: Path) -> None:
    """The provider gets the gateway's credential and none of the client's, in whatever header."""
    auth = {"master_key": "hg-master-0123456789", "keys": [{"name": "app", "key": "hg-client-0123456789"}]}
    async with live(tmp_path, auth=auth) as gateway, httpx.AsyncClient() as client:
        for header in ({"authorization": "Bearer hg-client-0123456789"}, {"x-api-key": "hg-client-0123456789"},
                       {"api-key": "hg-client-0123456789"}):  # fmt: skip
            more = {"cookie": "session=hg-client-0123456789", "openai-organization": "hg-client-0123456789"}
            assert (await client.post(gateway.url + PATH, json=CHAT, headers={**header, **more})).status_code == 200
        seen = str(gateway.upstream.seen.recent)
        assert "hg-client-0123456789" not in seen and "sk-upstream-secret" in seen


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_credential_that_a_provider_repeats_is_hidden(tmp_path: Path, status: int, stream: bool) -> None:
    """No client reads it, whatever the status; the rest of the message is passed on where it helps."""
    said = {"status": status, "error": "no model for sk-upstream-secret here"}
    scripts = {"rude": [said] * 8}
    async with live(tmp_path, scripts=scripts, models=["rude"]) as gateway, httpx.AsyncClient() as client:
        for _ in range(2):
            answer = await client.post(gateway.url + PATH, json={**CHAT, "model": "rude", "stream": stream})
            assert answer.status_code >= 400 and "sk-upstream-secret" not in answer.text
            assert status != 400 or "no model for *** here" in answer.text


async def test_a_credential_that_a_provider_repeats_inside_a_stream_is_hidden(tmp_path: Path) -> None:
    late = {"text": "one two three", "fault": "late_error", "after": 2, "gap_s": 0.1,
            "error": "no quota for sk-upstream-secret"}  # fmt: skip
    async with live(tmp_path, scripts={"rude": [late]}, models=["rude"]) as gateway, httpx.AsyncClient() as client:
        answer = await client.post(gateway.url + PATH, json={**CHAT, "model": "rude", "stream": True})
    assert answer.status_code == 200 and "no quota for ***" in answer.text
    assert "sk-upstream-secret" not in answer.text


def test_keys_are_stored_as_digests() -> None:
    """Neither a record, a keyring nor its configuration shows a key."""
    plain, record = new_key("app", 1.0)
    assert plain not in str(record) and record.key_hash == hashlib.sha256(plain.encode()).hexdigest()
    config = Auth(master_key=Secret("master-key-1"), keys=[KeyConfig(name="a", key=Secret("client-key-1"))])
    ring = Keyring(config)
    for text in (repr(ring), repr(vars(ring)), repr(config)):
        assert "client-key-1" not in text and "master-key-1" not in text
    assert len(plain) >= 35  # 192 random bits


def test_the_master_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of equal length are compared by `compare_digest`, for a right key and for a wrong one."""
    compared: list[tuple[int, int]] = []
    really = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return really(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    ring = Keyring(Auth(master_key=Secret("master-key-1")))
    assert ring.identify(b"Bearer master-key-1", None, "10.0.0.1", 0.0).admin
    with pytest.raises(Unauthorized):
        ring.identify(b"Bearer m", None, "10.0.0.1", 0.0)
    assert compared == [(32, 32), (32, 32)]


async def test_admin_and_data_are_separate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data port has no admin path, whatever the key; its metrics are for the master key, or for this machine."""
    auth = {"master_key": "hg-master-0123456789", "keys": [{"name": "app", "key": "hg-client-0123456789"}]}
    async with live(tmp_path, auth=auth) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        for key in ("hg-master-0123456789", "hg-client-0123456789"):
            for path in ("/admin/keys", "/admin/decisions", "/admin/openapi.json"):
                assert (await client.get(path, headers={"authorization": f"Bearer {key}"})).status_code == 404
        assert (await client.get("/metrics")).status_code == 200
        monkeypatch.setattr("gateway.api.health.is_loopback", lambda host: False)
        assert (await client.get("/metrics")).status_code == 401
        told = {"authorization": "Bearer hg-client-0123456789"}
        assert (await client.get("/metrics", headers=told)).status_code == 403
        told = {"authorization": "Bearer hg-master-0123456789"}
        assert (await client.get("/metrics", headers=told)).status_code == 200


@pytest.mark.parametrize("told", [
    {"origin": "https://evil.example"}, {"host": "evil.example"}, {"host": "evil.example:8080"}, {"origin": "null"},
    {"origin": "http://evil.example", "host": "evil.example"}, {"host": "127.0.0.1.evil.example"},
    {"origin": "http://localhost.evil.example"}, {"host": "[evil"},
])  # fmt: skip
async def test_a_web_page_does_not_reach_an_open_gateway(tmp_path: Path, told: dict[str, str]) -> None:
    """Without keys neither a foreign page nor a public name for this address is answered, on every path."""
    async with live(tmp_path) as gateway, httpx.AsyncClient(base_url=gateway.url, headers=told) as client:
        plain: dict[str, Any] = {"content": json.dumps(CHAT), "headers": {"content-type": "text/plain"}}
        for answer in (await client.post(PATH, **plain), await client.get("/v1/models"), await client.get("/v1/files")):
            assert answer.status_code == 403, answer.text
        assert gateway.upstream.seen.requests == 0
    with_keys = {"keys": [{"name": "app", "key": "hg-client-0123456789"}]}
    async with live(tmp_path, auth=with_keys) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        told = {**told, "authorization": "Bearer hg-client-0123456789"}
        assert (await client.post(PATH, json=CHAT, headers=told)).status_code == 200


@pytest.mark.parametrize("told", [
    {}, {"origin": "https://chat.example.org"}, {"origin": "http://localhost:3000"}, {"host": "localhost:8080"},
    {"host": "host.docker.internal:8080"}, {"host": "[::1]:8080"}, {"host": "gateway"}, {"origin": "vscode-webview://1"},
])  # fmt: skip
async def test_allowed_programs_and_pages_reach_an_open_gateway(tmp_path: Path, told: dict[str, str]) -> None:
    """They use a name that can only be internal, or an origin of the configuration."""
    pages = {"cors_origins": ["https://chat.example.org"]}
    async with live(tmp_path, server=pages) as gateway, httpx.AsyncClient(headers=told) as client:
        assert (await client.post(gateway.url + PATH, json=CHAT)).status_code == 200


# TLS


def certificate(folder: Path, name: str, authority: tuple[Path, Path] | None = None) -> tuple[Path, Path]:
    """A certificate for localhost, self-signed or signed by that authority, made by OpenSSL."""
    key, cert = folder / f"{name}.key", folder / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
               "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
               "-keyout", str(key), "-out", str(cert)]  # fmt: skip
    if authority is not None:
        command += ["-CA", str(authority[0]), "-CAkey", str(authority[1])]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


async def test_tls_and_client_certificates(tmp_path: Path) -> None:
    """With a certificate only TLS is accepted; with `tls_client_ca` only clients of that authority."""
    cert, key = certificate(tmp_path, "server")
    client_cert, client_key = certificate(tmp_path, "client")
    tls = {"tls_certificate": str(cert), "tls_key": str(key), "tls_client_ca": str(client_cert)}
    context = ssl.create_default_context(cafile=str(cert))
    stranger = ssl.create_default_context(cafile=str(cert))
    context.load_cert_chain(str(client_cert), str(client_key))
    async with live(tmp_path, server=tls) as gateway:
        url = gateway.url.replace("http://127.0.0.1", "https://localhost")
        async with httpx.AsyncClient(verify=context) as client:
            assert (await client.post(url + PATH, json=CHAT)).status_code == 200
        async with httpx.AsyncClient(verify=stranger) as client:
            with pytest.raises(httpx.HTTPError):
                await client.post(url + PATH, json=CHAT)
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.HTTPError):
                await client.post(gateway.url + PATH, json=CHAT)


def test_invalid_tls_is_refused_at_start(tmp_path: Path) -> None:
    """`check-config` names the path of a missing, foreign or invalid key."""
    cert, key = certificate(tmp_path, "one")
    _, foreign = certificate(tmp_path, "two")
    rubbish = tmp_path / "rubbish"
    rubbish.write_text("rubbish")

    def found(*files: Path | str) -> list[str]:
        names = ("tls_certificate", "tls_key", "tls_client_ca")
        given: dict[str, Any] = dict(zip(names, map(str, files), strict=False))
        return [setting for setting, _ in tls_problems(Server(**given))]

    assert found(cert, key) == found(cert, key, cert) == found() == []
    assert found(cert) == found("", key) == found(cert, foreign) == found(rubbish, key) == ["server.tls_certificate"]
    assert found(cert, key, rubbish) == found("", "", cert) == ["server.tls_client_ca"]
