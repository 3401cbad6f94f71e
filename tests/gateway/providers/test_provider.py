"""Request heads of every kind of provider: paths, credentials, and which headers are forwarded or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.types import ModelConfig, ProviderConfig, Secret, Server
from gateway.errors import CallerError, ConfigError
from gateway.providers import Provider, open_provider
from gateway.providers.managed import is_ready, managed, wait_ready
from gateway.providers.scripted import ScriptedServer

MODEL = ModelConfig(name="small", provider="p", upstream_name="up/stream 1")
SERVER = Server(run_dir="/tmp/hg-run")


def provider(kind: str = "openai", base_url: str = "http://h:9/v1", **fields: Any) -> Provider:
    config = ProviderConfig(name="p", kind=kind, base_url=base_url, **{"api_key": Secret("sk-up"), **fields})  # type: ignore[arg-type]
    return open_provider(config, SERVER)


def lines(head: bytes) -> tuple[str, dict[str, str]]:
    """The request line and the headers of a head."""
    assert head.endswith(b"\r\n")
    first, *rest = head.decode().removesuffix("\r\n").split("\r\n")
    return first, dict(line.split(": ", 1) for line in rest)


@pytest.mark.parametrize(
    ("kind", "base_url", "version", "dialect", "target"),
    [
        ("openai", "http://h:9/v1", "", "chat", "/v1/chat/completions"),
        ("openai", "http://h:9/v1/", "", "completions", "/v1/completions"),
        ("openai", "http://h:9", "", "embeddings", "/embeddings"),
        ("azure", "http://h:9", "", "chat",
         "/openai/deployments/up%2Fstream%201/chat/completions?api-version=2024-10-21"),
        ("azure", "http://h:9", "2025-01-01&x", "embeddings",
         "/openai/deployments/up%2Fstream%201/embeddings?api-version=2025-01-01%26x"),
        ("azure", "http://h:9/openai/v1", "", "chat", "/openai/v1/chat/completions"),
        ("azure", "http://h:9/openai/v1", "beta", "chat", "/openai/v1/chat/completions?api-version=beta"),
        ("anthropic", "http://h:9", "", "messages", "/v1/messages"),
        ("anthropic", "http://h:9/v1", "", "count_tokens", "/v1/messages/count_tokens"),
        ("scripted", "http://h:9/v1", "", "chat", "/v1/chat/completions"),
        ("local", "unix:/x.sock:/v1", "", "chat", "/v1/chat/completions"),
    ],
)  # fmt: skip
async def test_paths(kind: str, base_url: str, version: str, dialect: str, target: str) -> None:
    """Each kind of provider uses its API's path for each dialect."""
    head = provider(kind, base_url, api_version=version).head(MODEL, dialect, False, {})
    assert lines(head)[0] == f"POST {target} HTTP/1.1"


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("openai", "authorization", "Bearer sk-up"),
        ("azure", "api-key", "sk-up"),
        ("anthropic", "x-api-key", "sk-up"),
    ],
)
def test_credentials(kind: str, name: str, value: str) -> None:
    """The provider's key goes out in its API's header and the client's never; without a key there is no header."""
    dialect = "messages" if kind == "anthropic" else "chat"
    client = {b"authorization": b"Bearer sk-client", b"x-api-key": b"sk-client", b"api-key": b"sk-client",
              b"cookie": b"sk-client", b"x-anything": b"sk-client"}  # fmt: skip
    head = provider(kind).head(MODEL, dialect, False, client)
    assert lines(head)[1][name] == value
    assert b"sk-client" not in head
    without = provider(kind, api_key=Secret("")).head(MODEL, dialect, False, client)
    assert name not in lines(without)[1]


def test_what_passes() -> None:
    """Trace context is forwarded everywhere, version and beta headers only to Anthropic's API."""
    client = {b"traceparent": b"00-1-2-01", b"anthropic-version": b"2099-01-01", b"anthropic-beta": b"a,b"}
    claude = lines(provider("anthropic").head(MODEL, "messages", True, client))[1]
    assert claude["traceparent"] == "00-1-2-01"
    assert (claude["anthropic-version"], claude["anthropic-beta"]) == ("2099-01-01", "a,b")
    assert claude["accept"] == "text/event-stream"
    assert (
        lines(provider("anthropic").head(MODEL, "messages", True, {}))[1]["anthropic-version"] == "2023-06-01"
    )
    other = lines(provider().head(MODEL, "chat", False, client))[1]
    assert "traceparent" in other
    assert "anthropic-beta" not in other
    assert other["accept-encoding"] == "identity"


@given(value=st.binary(max_size=40))
def test_no_header_can_be_injected(value: bytes) -> None:
    """Any value of a forwarded header adds exactly one line to the head, or is refused."""
    upstream = provider()
    plain = upstream.head(MODEL, "chat", False, {}).count(b"\n")
    try:
        head = upstream.head(MODEL, "chat", False, {b"traceparent": value})
    except CallerError:
        assert any(sign in b"\x7f" or sign < 32 for sign in value)
    else:
        assert head.count(b"\n") == head.count(b"\r") == plain + 1


@pytest.mark.parametrize(
    "fields",
    [
        {"headers": {"x": "a\r\nb: c"}},
        {"headers": {"x y": "a"}},
        {"headers": {"Content-Length": "3"}},
        {"headers": {"transfer-encoding": "chunked"}},
        {"headers": {"x:": "a"}},
        {"api_key": Secret("k\nx")},
        {"base_url": "ftp://h/"},
        {"base_url": "http://u:p@h/"},
        {"kind": "azure", "base_url": ""},
    ],
)
def test_refused_configurations(fields: dict[str, Any]) -> None:
    """Headers that frame the request, control characters and strange URLs are refused at start."""
    with pytest.raises(ConfigError, match=r"providers\.p"):
        provider(**fields)


def test_operator_headers() -> None:
    """Headers of the configuration go out with every request."""
    head = provider(headers={"OpenAI-Organization": "org-1"}).head(MODEL, "chat", False, {})
    assert lines(head)[1]["openai-organization"] == "org-1"


def test_dialects() -> None:
    """The client's own dialect is kept where it exists; what can't be translated is refused."""
    assert [provider().dialect_for(s) for s in ("chat", "embeddings", "messages", "responses")] == [
        "chat", "embeddings", "chat", "chat"]  # fmt: skip
    assert provider("anthropic").dialect_for("chat") == "messages"
    assert provider("scripted", options={"dialect": "anthropic"}).dialect_for("chat") == "messages"
    with pytest.raises(CallerError):
        provider("anthropic").dialect_for("embeddings")


async def test_managed_child(tmp_path: Path) -> None:
    """A provider without a base URL listens on a unix socket, and is ready once it answers there."""
    config = ProviderConfig(name="p", kind="scripted", options={"scripts": {"small": [{"text": "hi"}]}})
    server = Server(run_dir=str(tmp_path))
    child = managed(config, server)
    assert child is not None
    assert child.command[1:5] == ["-m", "gateway.providers.scripted", "--uds", str(child.socket)]
    assert not await is_ready(child.socket)
    async with ScriptedServer({"small": [{"text": "hi"}]}, uds=str(child.socket)):
        assert await wait_ready(child.socket, timeout_s=60)
        upstream = open_provider(config, server)
        head = upstream.head(ModelConfig(name="small", provider="p"), "chat", False, {})
        response = await upstream.pool.send(head, b'{"model": "small"}', timeout_s=60)
        assert b'"hi"' in await response.read(10_000)
        await upstream.aclose()
    assert managed(ProviderConfig(name="q", kind="openai"), server) is None


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x" * 120])
def test_managed_names(name: str) -> None:
    """A name that isn't a plain file name, or makes the socket's path too long, is refused."""
    with pytest.raises(ConfigError):
        managed(ProviderConfig(name=name, kind="local"), SERVER)
