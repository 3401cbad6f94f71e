"""While everything fails, no output contains a secret or text of a request, whoever wrote it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from gateway.providers.scripted import ScriptedServer
from tests.command import headgate
from tests.ports import free_port
from tests.until import PATIENCE_S, until

SECRETS = {
    "the provider's key": "plainprovidercanary1",
    "a key set at run time": "plainruntimecanary2",
    "a header of ours": "plainheadercanary3",
    "the master key": "plainmastercanary4",
    "a client's key": "plainclientcanary5",
    "a stranger's key": "plainwrongcanary6",
    "a password": "plainpasswordcanary7",
    "the password of Redis": "plainrediscanary8",
    "a key in a faulty file": "plainreloadcanary9",
}
WORDS = {
    "a prompt": "quetzalcanary",
    "an answer": "obsidiancanary",
    "a comment": "malachitecanary",
    "a prompt in a file": "tourmalinecanary",
    "its answer": "carneliancanary",
}
PROMPT, ANSWER, COMMENT, FILED, FILED_ANSWER = (f"{word} and more" for word in WORDS.values())
LEAK = " ".join((SECRETS["a header of ours"], SECRETS["the provider's key"], PROMPT))
LATE_LEAK = f"{SECRETS['a key set at run time']} {PROMPT}"
"""A provider's message that repeats what a request contains."""
TOML = """
[server]
port = {port}
admin_port = {admin_port}
run_dir = "{folder}/run"
first_byte_timeout_s = 1.0
max_body_bytes = 100000
[storage]
url = "sqlite:///{folder}/journal.db"
redis_url = "redis://:plainrediscanary8@127.0.0.1:{nobody}/0"
[telemetry]
log_level = "debug"
log_format = "json"
otlp_endpoint = "{collector}"
[auth]
master_key = "plainmastercanary4"
[[auth.keys]]
name = "client"
key = "plainclientcanary5"
[[providers]]
name = "up"
kind = "openai"
base_url = "{upstream}"
api_key = "plainprovidercanary1"
headers = {{ x-extra = "plainheadercanary3" }}
batch_discount = 0.5
{models}
[[routes]]
name = "auto"
models = ["echo", "leak-500", "rst"]
cache = "exact"
[[routes]]
name = "away"
models = ["leak-500"]
"""
STATUSES = (400, 401, 402, 403, 404, 409, 422, 429, 500, 503, 529)
FAULTS = (
    "close", "rst", "garbage", "empty", "not_json", "cut", "malformed", "bad_chunk",
    "late_error", "no_done", "wrong_length",
)  # fmt: skip
SCRIPTS: dict[str, list[dict[str, Any]]] = {
    "echo": [{"text": ANSWER}],
    "filed": [{"text": FILED_ANSWER}],
    **{f"leak-{status}": [{"status": status, "error": LEAK, "error_code": LEAK}] for status in STATUSES},
    **{fault: [{"text": ANSWER, "error": LEAK, "fault": fault}] for fault in FAULTS},
}
LATE: dict[str, list[dict[str, Any]]] = {
    **{f"late-{status}": [{"status": status, "error": LATE_LEAK, "error_code": LATE_LEAK}] for status in STATUSES},
    "late-error": [{"text": ANSWER, "error": LATE_LEAK, "fault": "late_error"}],
}
SURFACES: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": PROMPT}]},
    "messages": {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 9},
    "responses": {"input": PROMPT, "store": False},
    "completions": {"prompt": PROMPT},
    "embeddings": {"input": PROMPT},
}


class Collector:
    """Receives spans as a collector does, and keeps their bytes."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.url = ""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Collector]:
        server = await asyncio.start_server(self._hear, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        self.heard.append(await reader.readexactly(length))
        refused = len(self.heard) % 2 == 0
        status = b"400 Bad Request" if refused else b"200 OK"
        writer.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
        writer.close()


async def test_no_output_reveals_anything(tmp_path: Path) -> None:
    """These are logs at every level, spans, metrics and the journal; answers have no secret, and the admin port's have
    no text either.
    """
    port, admin_port, log = free_port(), free_port(), tmp_path / "said.log"
    models = "".join(f'[[models]]\nname = "{name}"\nprovider = "up"\ninput_usd_per_mtok = 1.0\n' for name in SCRIPTS)
    file = tmp_path / "headgate.toml"
    data, admin = Heard(port), Heard(admin_port)
    scripts = ScriptedServer({**SCRIPTS, **LATE})
    async with Collector().open() as collector, scripts as upstream, data.client, admin.client:
        text = TOML.format(
            port=port, admin_port=admin_port, folder=tmp_path, nobody=free_port(), models=models,
            collector=collector.url, upstream=upstream.url,
        )  # fmt: skip
        file.write_text(text)
        async with running(file, log) as process:
            await ready(process, admin.client)
            await add_provider(admin, upstream.url)
            await ask_everything(data)
            await administer(admin)
            await run_batches(data, upstream)
            await reload(process, file, text, log)
            for path in ("/metrics", "/readyz"):
                await data.ask("GET", path)
                await admin.ask("GET", path)
            kept = {f"before, {name}": text for name, text in files(tmp_path).items()}
            await lose_the_database(tmp_path, data, admin)
        spans, said = b"".join(collector.heard), log.read_bytes()
    assert b"headgate." in said and b"gen_ai" in spans and any(name.endswith("journal.db") for name in kept)
    secrets, words = [*SECRETS.values()], [WORDS["a prompt"], WORDS["an answer"]]
    filed = [WORDS["a prompt in a file"], WORDS["its answer"]]
    found = found_in({"log": said, "spans": spans}, [*secrets, *WORDS.values()])
    found += found_in({"admin": admin.text}, [*secrets, *words, *filed])
    found += found_in({**kept, **files(tmp_path)}, [*secrets, *words])
    found += found_in({"data": data.text}, secrets)
    assert not found, "\n".join(found)


class Heard:
    """A client that keeps everything it receives."""

    def __init__(self, port: int) -> None:
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60)
        self.said: list[bytes] = []

    @property
    def text(self) -> bytes:
        return b"\n".join(self.said)

    async def ask(self, method: str, path: str, key: str = "plainmastercanary4", **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}", **more.pop("headers", {})}
        answer = await self.client.request(method, path, headers=headers, **more)
        self.said += [str(answer.headers.raw).encode(), answer.content]
        return answer


@asynccontextmanager
async def running(file: Path, log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    with log.open("wb") as told:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "serve", "--config", str(file), stdout=told, stderr=told,
            env={**os.environ, "OTEL_BSP_SCHEDULE_DELAY": "200"},
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def ready(process: asyncio.subprocess.Process, admin: httpx.AsyncClient) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while process.returncode is None:
            try:
                if (await admin.get("/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
    raise AssertionError("it ended")


async def add_provider(admin: Heard, upstream: str) -> None:
    """Add a provider whose key is in no file."""
    late = {"kind": "openai", "base_url": upstream, "api_key": SECRETS["a key set at run time"], "version": 0}
    assert (await admin.ask("PUT", "/admin/providers/late", json=late)).is_success
    for name in LATE:
        wanted = {"provider": "late", "upstream_name": name, "version": 0}
        assert (await admin.ask("PUT", f"/admin/models/{name}", json=wanted)).is_success


async def ask_everything(data: Heard) -> None:
    """Send requests to every surface of every model, whole and streamed, and then invalid ones."""
    key = SECRETS["a client's key"]
    models = ["auto", "away", *SCRIPTS, *LATE, PROMPT]

    async def ask(surface: str, model: str, stream: bool) -> None:
        body = {"model": model, **SURFACES[surface], **({"stream": True} if stream else {})}
        with suppress(httpx.HTTPError):  # broken off on purpose
            await data.ask("POST", f"/v1/{surface}", key, json=body)

    for surface in SURFACES:
        streams = (False,) if surface == "embeddings" else (False, True)
        await asyncio.gather(*(ask(surface, model, stream) for model in models for stream in streams))
    chat = "/v1/chat/completions"
    plain = {"model": "auto", **SURFACES["chat/completions"]}
    await data.ask("POST", chat, SECRETS["a stranger's key"], json=plain)
    await data.ask("POST", chat, "hg-" + SECRETS["a stranger's key"], json=plain)
    for content in (b"{" + PROMPT.encode(), PROMPT.encode() * 9999, b"\xff" + PROMPT.encode()):
        await data.ask("POST", chat, key, content=content)
    for body in (
        {"model": PROMPT}, {**plain, "messages": PROMPT}, {**plain, "messages": [PROMPT]},
        {**plain, "temperature": PROMPT}, {**plain, "headgate": {PROMPT: PROMPT}}, {**plain, "tools": [PROMPT]},
        {**plain, "max_tokens": PROMPT},
    ):
        await data.ask("POST", chat, key, json=body)
    for name in ("cost-weight", "models", "route", "max-cost-usd", "cache"):
        await data.ask("POST", chat, key, json=plain, headers={f"x-headgate-{name}": PROMPT})
    answer = await data.ask("POST", chat, key, json=plain)
    told = {"decision_id": answer.headers["x-headgate-decision-id"], "score": 0.5, "comment": COMMENT}
    await data.ask("POST", "/v1/feedback", key, json=told)
    await data.ask("POST", "/v1/feedback", key, json={**told, "score": COMMENT})
    await data.ask("GET", f"/v1/decisions/{told['decision_id']}", key)


async def administer(admin: Heard) -> None:
    """Use wrong secrets and invalid bodies, add a user and a key, test a connection, and open every page."""
    password = SECRETS["a password"]
    user = {"name": "otto", "role": "viewer", "password": password}
    await admin.ask("POST", "/admin/users", json=user)
    await admin.ask("POST", "/admin/users", json={**user, "role": password})
    for wanted in ({"user": "otto", "password": password + "x"}, {"user": password, "password": password}, password):
        await admin.ask("POST", "/admin/session", json=wanted)
    await admin.ask("GET", "/admin/audit", SECRETS["a stranger's key"])
    await admin.ask("POST", "/login", data={"user": "otto", "password": password + "x"})
    await admin.ask("PUT", "/admin/providers/bad", json={"kind": password, "api_key": password, "version": 0})
    for name in ("up", "late"):
        await admin.ask("POST", f"/admin/providers/{name}/check")
    paths = (await admin.ask("GET", "/admin/openapi.json")).json()["paths"]
    shown = [path for path, ways in paths.items() if "get" in ways and "{" not in path and path != "/admin/live"]
    for path in (*shown, "/", "/decisions", "/models", "/routes", "/audit", "/feedback", "/learning", "/keys"):
        await admin.ask("GET", path)


async def run_batches(data: Heard, upstream: ScriptedServer) -> None:
    """Run batches whose lines are answered, fail, or can't be read; the database stores the files for their clients."""
    key = SECRETS["a client's key"]
    lines = [
        {"custom_id": f"{n}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": model, "messages": [{"role": "user", "content": FILED}]}}
        for n, model in enumerate(("filed", "leak-400", "leak-500", "malformed", FILED))
    ]  # fmt: skip
    for content in ("\n".join(map(json.dumps, lines)), FILED):
        sent = await data.ask(
            "POST", "/v1/files", key, files={"file": ("b.jsonl", content)}, data={"purpose": "batch"}
        )
        asks = {"input_file_id": sent.json().get("id", "none"), "endpoint": "/v1/chat/completions",
                "completion_window": "24h"}  # fmt: skip
        made = await data.ask("POST", "/v1/batches", key, json=asks)
        async with asyncio.timeout(PATIENCE_S):
            while made.is_success and made.json()["status"] in ("validating", "in_progress", "finalizing"):
                await asyncio.sleep(0.2)
                made = await data.ask("GET", f"/v1/batches/{made.json()['id']}", key)


async def reload(process: asyncio.subprocess.Process, file: Path, text: str, log: Path) -> None:
    """Reload faulty files, each with a new secret, then a right one, and run the command that checks them."""
    new = SECRETS["a key in a faulty file"]
    key, redis = 'api_key = "plainprovidercanary1"', 'redis_url = "redis://:plainrediscanary8@'
    for faulty in (
        text.replace(key, f'api_key = "{new}"\nno_such_key = 1'),
        text.replace(key, f"api_key = {new}"),
        text.replace(key, f'api_key = ["{new}"]'),
        text.replace(key, f'api_key = "${{NONE_SUCH}}{new}"'),
        text.replace(redis, f'redis_url = "rediss:///:{new}@'),
        text.replace('url = "sqlite:', f'url = "postgresql://me:{new}@127.0.0.1:x/sqlite:'),
        text.replace('headers = {', f'headers = {{ "x-new" = "{new}\\n",'),
        text.replace('key = "plainclientcanary5"', f'key = "{new}"\n[[auth.keys]]\nname = "two"\nkey = "{new}"'),
        text,
    ):
        file.write_text(faulty)
        before = log.stat().st_size
        process.send_signal(signal.SIGHUP)
        await until(lambda: b"reloaded" in log.read_bytes()[before:])
        checked = await asyncio.to_thread(headgate, "check-config", file)
        assert (checked.code == 0) == (faulty == text)
        assert not found_in({faulty: (checked.out + checked.err).encode()}, list(SECRETS.values()))


async def lose_the_database(folder: Path, data: Heard, admin: Heard) -> None:
    """Break the database while records are to be written and pages are requested."""
    for one in folder.glob("journal.db*"):
        one.write_bytes(b"no database" * 1000)
    for _ in range(4):
        await data.ask("POST", "/v1/chat/completions", SECRETS["a client's key"],
                       json={"model": "echo", **SURFACES["chat/completions"]})  # fmt: skip
        for path in ("/readyz", "/admin/overview", "/admin/decisions", "/"):
            await admin.ask("GET", path)
        await asyncio.sleep(0.5)


def files(folder: Path) -> dict[str, bytes]:
    """All files that the gateway left, except its own copies of secrets, which only its user may read, and plans of
    batches.
    """
    found = [*(folder / "run").rglob("*"), *folder.glob("journal.db*")]
    secret = [path for path in found if path.name in ("config.toml", "secrets.json")]
    assert len(secret) == 2 and all(path.stat().st_mode & 0o77 == 0 for path in secret)
    return {
        str(path): path.read_bytes()
        for path in found
        if path.is_file() and path not in secret and "batch" not in str(path.relative_to(folder))
    }


def found_in(written: dict[str, bytes], words: list[str]) -> list[str]:
    """Each word that was found, where, and its context."""
    found = []
    for where, text in written.items():
        for word in words:
            at = text.find(word.encode())
            if at >= 0:
                found.append(f"{where}: ...{text[max(0, at - 300) : at + 100]!r}")
    return found
