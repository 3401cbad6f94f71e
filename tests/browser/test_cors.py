"""Pages that send requests to the data plane from within a browser."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.ports import free_port

ASK = """async ([url, key, stream]) => {
    const answer = await fetch(url + "/v1/chat/completions", {
        method: "POST",
        headers: {"content-type": "application/json", authorization: "Bearer " + key, "x-stainless-lang": "js"},
        body: JSON.stringify({model: "m", stream, messages: [{role: "user", content: "hello"}]}),
    }).catch(error => ({status: 0, headers: new Headers(), text: async () => String(error)}));
    return [answer.status, answer.headers.get("x-headgate-model"), await answer.text()];
}"""


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def site() -> Iterator[str]:
    """An origin with an empty page."""
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def gateway(folder: Path, origins: list[str]) -> Iterator[str]:
    port = free_port()
    config = folder / "headgate.toml"
    config.write_text(f"""
server = {{ port = {port}, admin_port = {free_port()}, run_dir = "{folder}/run", cors_origins = {origins} }}
storage.url = "sqlite:///{folder}/journal.db"
auth.master_key = "hg-master"
providers = [{{ name = "script", kind = "scripted" }}]
models = [{{ name = "m", provider = "script" }}]
""")
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--config", str(config)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None and b"answers on" in process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("stream", [False, True])
def test_pages_of_configured_origins_may_send_requests(browser: Browser, tmp_path: Path, stream: bool) -> None:
    """They can read answers, streams, errors and the gateway's headers; pages of other origins can read nothing."""

    def asked(origin: str, key: str = "hg-master") -> Any:
        page = browser.new_page()
        page.goto(origin)
        found = page.evaluate(ASK, [url, key, stream])
        page.close()
        return found

    with site() as ours, site() as foreign, gateway(tmp_path, [ours]) as url:
        status, model, text = asked(ours)
        assert (status, model) == (200, "m") and "hello" in text
        status, _, text = asked(ours, "hg-wrong")
        assert status == 401 and "invalid_api_key" in text
        assert asked(foreign)[0] == 0
