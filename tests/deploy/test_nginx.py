"""nginx with Debian's defaults and nothing but an address: it speaks HTTP/1.0 to the gateway and buffers answers."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.live import Live, live
from tests.ports import free_port
from tests.until import until

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")

CONFIG = """\
error_log stderr; pid {folder}/pid; daemon off; master_process off;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {url}; {more} }} }}
}}
"""
MORE = ["", "proxy_http_version 1.1;", 'proxy_http_version 1.1; proxy_set_header Connection "";']
PATHS = ["/v1/chat/completions", "/openai/deployments/MODEL/chat/completions"]
CHAT = {"model": "slow", "messages": [{"role": "user", "content": "one two three"}]}
SLOW = {
    "slow": [{"text": "one two three four", "gap_s": 0.02}],
    "endless": [{"text": "one two three four", "fault": "stall", "after": 2}],
}


@pytest.fixture(params=MORE, ids=["1.0", "1.1", "1.1 kept alive"])
async def before(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[str, Live]]:
    """nginx's URL, and the gateway behind it."""
    async with live(tmp_path, scripts=SLOW, models=[*SLOW]) as gateway:
        port = free_port()
        path = tmp_path / "nginx.conf"
        path.write_text(CONFIG.format(folder=tmp_path, port=port, url=gateway.url, more=request.param))
        nginx = await asyncio.create_subprocess_exec("nginx", "-p", str(tmp_path), "-c", str(path))
        try:
            await until(lambda: listens(port))
            yield f"http://127.0.0.1:{port}", gateway
        finally:
            nginx.terminate()
            await nginx.wait()
        await gateway.rest()


async def listens(port: int) -> bool:
    """Whether a server listens on this port."""
    with suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True
    return False


@pytest.mark.parametrize("path", PATHS)
async def test_whole_answers_and_streams_come_through(before: tuple[str, Live], path: str) -> None:
    """A stream arrives completely and contains nothing but events."""
    url, _ = before
    url += path.replace("MODEL", "slow")
    async with httpx.AsyncClient(timeout=60) as client:
        whole = await client.post(url, json=CHAT)
        assert whole.json()["choices"][0]["message"]["content"] == "one two three four"
        async with client.stream("POST", url, json={**CHAT, "stream": True}) as answer:
            pieces = [line async for line in answer.aiter_lines() if line]
    assert pieces[-1] == "data: [DONE]" and all(piece.startswith("data: ") for piece in pieces)
    said = [json.loads(piece[6:])["choices"] for piece in pieces[:-1]]
    assert "".join(c[0]["delta"].get("content") or "" for c in said if c) == "one two three four"


@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_arrives_while_it_is_made(before: tuple[str, Live], path: str) -> None:
    """nginx buffers nothing: what was sent arrives while the upstream is silent. When the client leaves, nginx closes
    its own connection, and the upstream's answer is not waited for.
    """
    url, gateway = before
    chat = {**CHAT, "model": "endless", "stream": True}
    url += path.replace("MODEL", "endless")
    async with httpx.AsyncClient(timeout=60) as client, client.stream("POST", url, json=chat) as answer:
        async for line in answer.aiter_lines():
            if "two" in line:
                break
    await until(lambda: gateway.upstream.seen.disconnects == 1)
