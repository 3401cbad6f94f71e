"""`headgate serve` as an operator runs it: real processes, a managed upstream, keys made while it runs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from gateway.breaker import CONSECUTIVE
from gateway.serve.worker_counters import REFUSED
from tests.command import headgate
from tests.live import served, workers_of
from tests.ports import free_port
from tests.postgres_server import PostgresServer
from tests.until import PATIENCE_S, until

CHAT = {"model": "auto", "messages": [{"role": "user", "content": "hello there"}]}


def write_config(folder: Path, *, master_key: str = "hg-master") -> tuple[Path, int, int]:
    """The configuration of a gateway with the managed scripted upstream; returns the data port and the admin port."""
    port, admin_port = free_port(), free_port()
    path = folder / "headgate.toml"
    path.write_text(f"""
[server]
port = {port}
admin_port = {admin_port}
run_dir = "{folder}/run"
drain_timeout_s = 10
[storage]
url = "sqlite:///{folder}/journal.db"
[[providers]]
name = "script"
kind = "scripted"
[providers.options.scripts]
small = [{{ text = "a small answer" }}]
bad = [{{ status = 500 }}]
slow = [{{ text = "one two three four", gap_s = 0.3 }}]
[[models]]
name = "small"
provider = "script"
input_usd_per_mtok = 0.1
output_usd_per_mtok = 0.4
[[models]]
name = "slow"
provider = "script"
[[models]]
name = "bad"
provider = "script"
[[routes]]
name = "auto"
models = ["small"]
router = "cheapest"
[auth]
master_key = "{master_key}"
""")
    return path, port, admin_port


def started(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "gateway", *words], capture_output=True, text=True, timeout=150)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
async def test_the_addresses_it_names_are_addresses(tmp_path: Path) -> None:
    """IPv6 hosts are in brackets."""
    config, _, _ = write_config(tmp_path)
    config.write_text(config.read_text().replace("[server]", '[server]\nhost = "::1"'))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "serve", "--config", str(config), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).decode()
    try:
        data, admin = (httpx.URL(found) for found in re.findall(r"http://\S+", line))
        assert (data.host, data.path, admin.host) == ("::1", "/v1", "::1")
        async with httpx.AsyncClient(trust_env=False) as client:
            answers = [await client.get(url.copy_with(path="/healthz")) for url in (data, admin)]
        assert [answer.status_code for answer in answers] == [200, 200]
    finally:
        process.terminate()
        await process.wait()


async def test_keys_made_while_it_runs_open_it_and_revoked_ones_do_not(tmp_path: Path) -> None:
    """A key works within a second of `keys create` and not after `keys revoke`; explain shows its use."""
    config, port, _ = write_config(tmp_path)
    where = ("--config", str(config))
    async with served(config), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        assert (tmp_path / "run").stat().st_mode & 0o077 == 0  # what is cached there is nobody else's to read
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 401
        made = json.loads((await asyncio.to_thread(headgate, "keys", "create", "app", "--json", *where)).out)
        auth = {"authorization": f"Bearer {made['key']}"}
        answer = await eventually(client, auth, 200)
        assert answer.json()["choices"][0]["message"]["content"] == "a small answer"
        told = await asyncio.to_thread(headgate, "explain", answer.headers["x-headgate-decision-id"], "--json", *where)
        assert json.loads(told.out)["key_id"] == made["id"]
        listed = await asyncio.to_thread(headgate, "keys", "list", *where)
        assert made["key"] not in listed.out
        words = ("keys", "rotate", made["id"], "--grace", "5s", "--json", *where)
        fresh = json.loads((await asyncio.to_thread(headgate, *words)).out)
        renewed = {"authorization": f"Bearer {fresh['key']}"}
        await eventually(client, renewed, 200)
        if time.time() < fresh["earlier_until_s"]:
            assert (await client.post("/v1/chat/completions", json=CHAT, headers=auth)).status_code == 200
        refused = await eventually(client, auth, 401)
        assert time.time() >= fresh["earlier_until_s"] and "has expired" in refused.json()["error"]["message"]
        assert (await eventually(client, renewed, 200)).status_code == 200
        await asyncio.to_thread(headgate, "keys", "revoke", made["id"], *where)
        await eventually(client, renewed, 401)


async def eventually(client: httpx.AsyncClient, headers: dict[str, str], status: int) -> httpx.Response:
    """Repeat a request until its status is as expected; a second is promised, a minute is allowed on a busy machine."""
    for _ in range(600):
        answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
        if answer.status_code == status:
            return answer
        await asyncio.sleep(0.1)
    raise AssertionError(f"still {answer.status_code}, not {status}")


async def eventually_told(admin_port: int) -> int:
    """The number of decisions that the control process reports, once there are any."""
    async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient(base_url=f"http://127.0.0.1:{admin_port}") as control:
        while True:
            with suppress(httpx.TransportError):
                answer = await control.get("/admin/decisions")
                if answer.status_code == 200 and answer.json()["data"]:
                    return len(answer.json()["data"])
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
async def test_a_stream_under_way_ends_and_no_process_is_left(
    tmp_path: Path, sign: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also at Ctrl-C, which a terminal sends to the whole process group: the stream arrives whole, no error is logged,
    and nothing listens any more.
    """
    config, port, _ = write_config(tmp_path, master_key="")
    async with served(config) as process:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            body = {**CHAT, "model": "slow", "stream": True}
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                chunks = answer.aiter_text()
                text = await anext(chunks)
                os.killpg(process.pid, sign)
                text += "".join([chunk async for chunk in chunks])
        await asyncio.wait_for(process.wait(), PATIENCE_S)
    assert "four" in text and text.endswith("data: [DONE]\n\n")
    assert process.returncode == 0
    told = capfd.readouterr().err
    assert "error" not in told and "Traceback" not in told
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/healthz")


async def test_a_taken_port_is_said_at_once(tmp_path: Path) -> None:
    """A second gateway on the port ends with the setting's path, and starts nothing."""
    config, _, _ = write_config(tmp_path, master_key="")
    async with served(config):
        second = await asyncio.to_thread(started, "serve", "--config", str(config))
    assert second.returncode == 2
    assert "server.port" in second.stderr


async def test_a_second_gateway_in_one_run_folder_is_refused_and_disturbs_nothing(tmp_path: Path) -> None:
    """Also on ports of its own; the first one's counters and configuration stay."""
    config, port, admin_port = write_config(tmp_path, master_key="")
    other = tmp_path / "other.toml"
    text = config.read_text().replace(str(port), str(free_port())).replace(str(admin_port), str(free_port()))
    other.write_text(text)
    async with served(config), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        await until(lambda: list((tmp_path / "run").glob("worker-*.metrics")))
        in_force = (tmp_path / "run" / "config.toml").read_bytes()
        for file, fault in ((other, "server.run_dir: another gateway runs in"), (config, "server.port")):
            second = await asyncio.to_thread(started, "serve", "--config", str(file))
            assert second.returncode == 2 and fault in second.stderr
            assert (tmp_path / "run" / "config.toml").read_bytes() == in_force
        assert (await client.get("/readyz")).status_code == 200


def test_the_base_install_imports_no_torch() -> None:
    """A worker serves without importing torch, transformers or scikit-learn."""
    code = (
        "import sys, gateway.serve.worker, gateway.app\n"
        "from gateway.config.load import embedded\n"
        "gateway.app.build(embedded())\n"
        "print(sorted(set(sys.modules) & {'torch', 'transformers', 'sklearn', 'pandas', 'pyarrow', 'scipy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_worker_loads_only_the_clients_it_needs() -> None:
    """Without Redis and budgets neither client is imported; they are a third of a worker's memory."""
    code = (
        "import sys, gateway.serve.worker, gateway.app\n"
        "from gateway.config.load import embedded\n"
        "gateway.app.build(embedded())\n"
        "print(sorted(set(sys.modules) & {'redis', 'hiredis', 'sqlalchemy', 'alembic', 'fastapi', 'pydantic'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_control_process_without_redis_loads_no_client_of_it() -> None:
    """Importing Redis' client takes a fifth of the time of all other imports."""
    code = "import sys, gateway.serve.control; print('redis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150)
    assert done.stdout.strip() == "False", done.stdout + done.stderr


def test_check_config_says_everything_at_once(tmp_path: Path) -> None:
    """Three faults in one file give three lines with three paths."""
    path = tmp_path / "bad.toml"
    path.write_text('[server]\nprot = 1\n[[routes]]\nname = "a"\nmodels = ["x"]\nfallback = ["a"]\n')
    done = headgate("check-config", path, "--json")
    assert headgate("check-config", "--config", path, "--json").out == done.out
    problems = json.loads(done.out)["problems"]
    assert done.code == 2
    assert any("server.prot" in line for line in problems)
    assert any("routes[0].models[0]" in line for line in problems)
    assert any("fallback" in line for line in problems)


def test_a_database_whose_schema_is_behind_is_told_before_anything_starts(
    tmp_path: Path,
    postgres_server: PostgresServer,
) -> None:
    """The start is refused with the command to run, because workers could hold no budget."""
    path, _, _ = write_config(tmp_path)
    url = postgres_server.new_database()
    path.write_text(path.read_text().replace(f"sqlite:///{tmp_path}/journal.db", url))
    done = started("serve", "--config", str(path))
    assert done.returncode == 2 and "headgate migrate" in done.stderr and "answers on" not in done.stdout


def test_what_the_command_is_given_wrongly_ends_it_in_one_line(tmp_path: Path) -> None:
    """A folder that can't be created or an invalid amount gives status 2 and a sentence, never a traceback."""
    path, _, _ = write_config(tmp_path)
    (tmp_path / "file").touch()
    for words, said in [
        (("export", "--out", str(tmp_path / "file" / "out")), f"{tmp_path}/file/out: Not a directory\n"),
        (("whatif", "--max-cost-usd", "nan"), "--max-cost-usd"),
        (("whatif", "--max-latency-s", "-1"), "--max-latency-s"),
        (("export", "--out", str(tmp_path / "o"), "--since-hours", "-1"), "--since-hours"),
    ]:  # fmt: skip
        done = headgate(*words, "--config", path)
        assert done.code == 2 and said in done.err and "Traceback" not in done.err, done.err


@pytest.mark.parametrize("words", [("serve",), ("keys", "create", "app")])
def test_spoilt_settings_are_told_in_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    """The message names the file, what is wrong with it and what to do, without a traceback."""
    config, _, _ = write_config(tmp_path)
    (spoilt := tmp_path / "run" / "settings.json").parent.mkdir()
    spoilt.touch()
    done = started(*words, "--config", str(config))
    assert done.returncode == 2
    assert f"{spoilt} is spoilt (Input data was truncated). Restore it, or remove it" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_a_journal_in_no_folder_ends_the_start(tmp_path: Path) -> None:
    """A missing folder doesn't count as a database that is away, which would be waited for."""
    path, _, _ = write_config(tmp_path)
    path.write_text(re.sub(r"sqlite:///.*\"", f'sqlite:///{tmp_path}/nowhere/journal.db"', path.read_text()))
    done = started("serve", "--config", str(path))
    assert done.returncode == 2 and f"storage.url: {tmp_path}/nowhere is no folder" in done.stderr


BASE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "psycopg", "opentelemetry"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from gateway.__main__ import main
main()
"""
"""The command where only the base install is."""


@pytest.mark.parametrize(
    ("extra", "commands"),
    [("local", ("check-config", "serve", "batch run in.jsonl")), ("postgres", ("check-config", "serve", "keys list")),
     ("otel", ("check-config", "serve"))],
)  # fmt: skip
def test_what_is_not_installed_is_told_with_its_extra(tmp_path: Path, extra: str, commands: tuple[str, ...]) -> None:
    """A missing extra is named in one line before anything starts."""
    path, _, _ = write_config(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"prompt": "why?"}\n')
    text = path.read_text()
    path.write_text({
        "local": text + '[[providers]]\nname = "home"\nkind = "local"\n',
        "postgres": re.sub(r"sqlite:///[^\"]*", "postgresql://u@127.0.0.1:9/d", text),
        "otel": text + '[telemetry]\notlp_endpoint = "http://127.0.0.1:9"\n',
    }[extra])  # fmt: skip
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-c", BASE, *command.split(), "--config", str(path)],
            capture_output=True, text=True, timeout=150, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 2 and done.stderr.count(f"pip install 'headgate[{extra}]'") == 1, done.stderr
        assert "Traceback" not in done.stderr


def test_a_base_install_without_a_file_says_what_it_needs(tmp_path: Path) -> None:
    """The embedded defaults run local models, which need an extra."""
    for command, told in (("serve", "a headgate.toml here replaces"), ("check-config", "the embedded defaults: 1")):
        done = subprocess.run(
            [sys.executable, "-c", BASE, command],
            capture_output=True, text=True, cwd=tmp_path, check=False, timeout=150,
        )  # fmt: skip
        assert done.returncode == 2 and told in done.stderr and "headgate[local]" in done.stderr


def test_the_version_is_told() -> None:
    """`--version` prints the version."""
    assert re.fullmatch(r"headgate \d+\.\d+\.\d+\n", headgate("--version").out)


def test_no_help_text_loses_a_word() -> None:
    """Words in square brackets would be taken for markup and not be shown."""
    import typer.main

    from gateway.__main__ import app, mount

    mount()
    commands = [typer.main.get_command(app)]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        said = [command.help, *(getattr(one, "help", "") for one in command.params)]
        assert not [text for text in said if re.search(r"\[[a-z/]", text or "")], command.name


@pytest.mark.parametrize(
    ("setting", "told"),
    [('router = "gone/router.safetensors"', "routes[0].router: gone/router.safetensors: no such file"),
     ('router = "cheapest"\nsolved = "gone.jsonl"', "routes[0].solved: gone.jsonl: No such file or directory"),
     ('router = "cheapest"\ncache_rule = "gone.npz"', "routes[0].cache_rule: [Errno 2] No such file or directory"),
     ('router = "cheapest"\n[embedding]\nkind = "folder"\npath = "gone"', "embedding.path: gone: "),
     ('router = "cheapest"\n[[providers]]\nname = "home"\nkind = "local"\noptions = { models = { m = "gone" } }',
      "providers[1].options.models.m: gone: there is no model (config.json) in it"),
     ('router = "cheapest"\ncascade = "gone/trained.bin"', "routes[0].cascade: gone/trained.bin: no such file")],
)  # fmt: skip
def test_a_file_that_is_not_there_is_told_before_anything_starts(tmp_path: Path, setting: str, told: str) -> None:
    """`check-config` and `serve` name the setting, and no worker is restarted again and again."""
    path, _, _ = write_config(tmp_path)
    path.write_text(path.read_text().replace('router = "cheapest"', setting))
    checked = headgate("check-config", "--config", path)
    assert checked.code == 2 and told in checked.err
    served = started("serve", "--config", str(path))
    assert served.returncode == 2 and told in served.stderr
    assert "Traceback" not in served.stderr and "answers on" not in served.stdout


@pytest.mark.parametrize("after_s", [0.01, 0.05, 0.1, 0.2, 0.4])
def test_ctrl_c_while_the_command_is_being_loaded_says_nothing(after_s: float) -> None:
    """It ends without a traceback, with the shell's status 130."""
    code = "from gateway import start; print(flush=True); start.main()"
    words = [sys.executable, "-c", code, "--version"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        time.sleep(after_s)
        process.send_signal(signal.SIGINT)
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(60) in (-signal.SIGINT, 130, 0)


def test_ctrl_c_while_the_command_line_is_put_together_says_nothing() -> None:
    """It ends without a traceback between the imports and the command itself."""
    code = (
        "import signal, time, typer.main; from gateway import start\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whoever started the tests may ignore it
        "typer.main.get_command = lambda _: (signal.raise_signal(signal.SIGINT), time.sleep(60))\n"
        "start.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("port", ["port", "admin_port"])
async def test_more_clients_than_file_descriptors(tmp_path: Path, port: str) -> None:
    """New connections are turned away, which is logged in one line; open ones are served, and afterwards all are."""
    ports = {"port": free_port(), "admin_port": free_port()}
    said = tmp_path / "said.log"
    (tmp_path / "headgate.toml").write_text(
        f'[server]\nport = {ports["port"]}\nadmin_port = {ports["admin_port"]}\nrun_dir = "{tmp_path}/run"\n'
        f'[storage]\nurl = "sqlite:///{tmp_path}/journal.db"\n[[providers]]\nname = "sim"\nkind = "scripted"\n'
        '[[models]]\nname = "echo"\nprovider = "sim"\n'
    )
    command = f"ulimit -n 200; exec {sys.executable} -m gateway serve --config {tmp_path}/headgate.toml"
    with said.open("wb") as log:
        process = await asyncio.create_subprocess_shell(command, stdout=log, stderr=log)
    head = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"

    async def opened() -> asyncio.StreamWriter | None:
        """A connection that was answered; None where it was turned away."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", ports[port])
            writer.write(head)
            await reader.readuntil(b"}")
        except (OSError, asyncio.IncompleteReadError):
            return None
        held.append((reader, writer))
        return writer

    async def told(text: bytes) -> None:
        await until(lambda: text in said.read_bytes())

    held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    try:
        await told(b"answers on")
        await until(opened)
        async with asyncio.timeout(PATIENCE_S):
            while await opened():
                pass
            reader, writer = held[0] if port == "port" else held[-1]  # the admin port ends idle ones
            writer.write(head)
            await reader.readuntil(b"}")
            await told(b"all 200 file descriptors are in use")
            for _, writer in held:
                writer.close()
        await until(opened)
        await told(b"there are file descriptors again")
    finally:
        process.terminate()
        await process.wait()
    assert b"Traceback" not in said.read_bytes() and said.read_bytes().count(b"\n") < 20


async def test_a_provider_is_not_blamed_for_a_lack_of_file_descriptors(tmp_path: Path) -> None:
    """Clients get 503 with a retry, and no breaker opens, over TCP, by a name or by a socket file."""
    port, said = free_port(), tmp_path / "said.log"
    up = await asyncio.start_server(answer_chat, "127.0.0.1", 0)
    there = up.sockets[0].getsockname()[1]
    hosts = {"number": "127.0.0.1", "name": "localhost"}
    parts = "".join(
        f'[[providers]]\nname = "{name}"\nkind = "openai"\nbase_url = "http://{host}:{there}/v1"\n'
        f'[[models]]\nname = "{name}"\nprovider = "{name}"\n'
        for name, host in hosts.items()
    )
    (tmp_path / "headgate.toml").write_text(
        f'[server]\nport = {port}\nadmin_port = {free_port()}\nrun_dir = "{tmp_path}/run"\n'
        f'[storage]\nurl = "sqlite:///{tmp_path}/journal.db"\n{parts}[[providers]]\nname = "file"\nkind = "scripted"\n'
        '[[models]]\nname = "file"\nprovider = "file"\n'
    )
    command = f"ulimit -n 200; exec {sys.executable} -m gateway serve --config {tmp_path}/headgate.toml"
    with said.open("wb") as log:
        process = await asyncio.create_subprocess_shell(command, stdout=log, stderr=log)
    held: list[asyncio.StreamWriter] = []
    try:
        async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await until(lambda: b"answers on" in said.read_bytes())
            assert (await client.get("/healthz")).status_code == 200
            while b"file descriptors are in use" not in said.read_bytes():
                held.append((await asyncio.open_connection("127.0.0.1", port))[1])
                await asyncio.sleep(0.01)
            for model in ("number", "name", "file"):
                for _ in range(CONSECUTIVE + 1):
                    answer = await client.post("/v1/chat/completions", json={**CHAT, "model": model})
                    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "out_of_files"), answer.text
                    assert answer.headers["retry-after"] == "1" and "x-should-retry" not in answer.headers
            told = await client.get("/metrics")
            assert (told.status_code, "Too many open files" in told.text) == (503, True), told.text
            for path in ("/readyz", "/v1/files", "/v1/decisions/dec_1"):  # what they need has never been loaded
                told = await client.get(path)
                assert (told.status_code, told.json()["error"]["code"]) == (503, "out_of_files"), told.text
                assert told.headers["retry-after"] == "1"
            for writer in held:
                writer.close()
            await until(lambda: b"there are file descriptors again" in said.read_bytes())
            figures = (await client.get("/metrics")).text
            assert (await client.get("/readyz")).status_code == 200
            for model in ("number", "name", "file"):
                answer = await client.post("/v1/chat/completions", json={**CHAT, "model": model})
                assert answer.status_code == 200, answer.text
        states = re.findall(r"^headgate_breaker_state\{.*\} (\S+)$", figures, re.MULTILINE)
        assert states == ["0.0"] * 3, figures
        assert b"Traceback" not in said.read_bytes() and b"inside the gateway" not in said.read_bytes()
    finally:
        process.terminate()
        await process.wait()
        up.close()


async def answer_chat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers any request, one per connection."""
    await reader.readuntil(b"\r\n\r\n")
    told = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}]}  # fmt: skip
    body = json.dumps(told).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n"
                 b"content-length: %d\r\n\r\n%b" % (len(body), body))  # fmt: skip
    await writer.drain()
    writer.close()


async def test_whoever_stops_reading_the_log_stops_nobody(tmp_path: Path) -> None:
    """When nobody reads the log, as after Ctrl-S on a terminal, workers answer and end at SIGTERM."""
    config, port, _ = write_config(tmp_path, master_key="")
    config.write_text(config.read_text() + '[telemetry]\nlog_level = "debug"\n')
    read, log = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "serve", "--config", str(config), stdout=asyncio.subprocess.PIPE, stderr=log
    )
    try:
        assert process.stdout is not None
        assert b"answers on" in await asyncio.wait_for(process.stdout.readline(), 300)
        os.set_blocking(log, False)
        for size in (4096, 1):
            with suppress(BlockingIOError):
                while os.write(log, b"x" * size):
                    pass
        os.set_blocking(log, True)  # it is the gateway's, too
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
            for _ in range(CONSECUTIVE + 1):  # the last finds that its breaker has opened, which the log is told
                assert (await client.post("/v1/chat/completions", json={**CHAT, "model": "bad"})).status_code >= 500
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        process.terminate()
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
    finally:
        os.close(read)  # whoever hangs on it goes on
        os.close(log)
        if process.returncode is None:
            process.terminate()
            await process.wait()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
async def test_a_full_disk_under_its_output_keeps_nobody_waiting(tmp_path: Path) -> None:
    """The service manager is notified although nothing can be written to the standard output."""
    config, _, _ = write_config(tmp_path, master_key="")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, open("/dev/full", "wb") as full:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(PATIENCE_S)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "serve", "--config", str(config),
            stdout=full, stderr=full, env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )  # fmt: skip
        try:
            assert await asyncio.to_thread(notified.recv, 99) == b"READY=1"
        finally:
            process.terminate()
            await process.wait()


async def test_a_run_folder_has_any_name_in_any_locale(tmp_path: Path) -> None:
    """Its name may have characters that the locale can't represent or that have a meaning in URLs."""
    config, port, admin_port = write_config(tmp_path, master_key="")
    with (
        TemporaryDirectory(suffix="größe: 5%41 語") as folder,  # a short path: a socket's has 107 bytes
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
    ):
        config.write_text(config.read_text().replace(f"{tmp_path}/run", f"{folder}/run"), "utf-8")
        notified.bind(f"{folder}/notify")
        notified.settimeout(PATIENCE_S)
        locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "NOTIFY_SOCKET": f"{folder}/notify"}
        async with served(config, **locale), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert await asyncio.to_thread(notified.recv, 99) == b"READY=1"
            answer = await client.post("/v1/chat/completions", json={**CHAT, "model": "small"})
            assert answer.status_code == 200
            assert await eventually_told(admin_port) == 1


async def test_it_serves_as_the_only_program_of_a_bare_container(tmp_path: Path) -> None:
    """It runs as process 1, which inherits orphans, and without shared memory (/dev/shm)."""
    config, port, _ = write_config(tmp_path, master_key="")
    alone = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c"]
    bare = "mount -t tmpfs -o ro none /dev/shm && exec"
    if subprocess.run([*alone, f"{bare} true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root, to make namespaces")
    serve = f"{bare} {sys.executable} -m gateway serve --config {config}"
    outer = await asyncio.create_subprocess_exec(*alone, serve, stdout=asyncio.subprocess.PIPE)
    try:
        assert outer.stdout is not None
        assert b"answers on" in await asyncio.wait_for(outer.stdout.readline(), 300)
        (one,) = _children(outer.pid)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.post("/v1/chat/completions", json={**CHAT, "model": "small"})).status_code == 200
        before = set(_children(one))
        inside = ["nsenter", "--target", str(one), "--pid", "--", "sh", "-c", "(sleep 0.1; sleep 0.2) & exec true"]
        subprocess.run(inside, check=True)
        await until(lambda: set(_children(one)) > before)
        await until(lambda: set(_children(one)) == before)
        os.kill(one, signal.SIGTERM)
        assert await asyncio.wait_for(outer.wait(), PATIENCE_S) == 0
    finally:
        if outer.returncode is None:
            for pid in _children(outer.pid):
                os.kill(pid, signal.SIGKILL)
            await outer.wait()


def _children(pid: int) -> list[int]:
    """Ids of a process's children, including those that have ended and were not reaped."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_the_command_line_states_how_many_workers_there_are(tmp_path: Path) -> None:
    """Also at a reload, where the file states another number."""
    config, _, _ = write_config(tmp_path, master_key="")
    async with served(config, "--workers", "1") as process:
        config.write_text(config.read_text().replace("[server]", "[server]\nworkers = 3"))
        before = workers_of(process.pid)
        process.send_signal(signal.SIGHUP)
        await until(lambda: workers_of(process.pid) not in (before, []))
        control = (tmp_path / "run" / "config.toml").read_bytes
        await until(lambda: control() == config.read_bytes())
        await until(lambda: len(workers_of(process.pid)) == 1)
        await asyncio.sleep(0.5)
        assert len(workers_of(process.pid)) == 1


async def test_a_reload_to_several_workers_needs_what_a_start_needs(tmp_path: Path) -> None:
    """Without shared storage each worker would give out the whole budget of a key that was made meanwhile."""
    config, _, _ = write_config(tmp_path, master_key="")
    async with served(config) as process:
        words = ("keys", "create", "app", "--budget-usd", "1", "--config", str(config))
        assert (await asyncio.to_thread(headgate, *words)).code == 0
        await until(lambda: b"app" in (tmp_path / "run" / "settings.json").read_bytes())
        before = workers_of(process.pid)
        config.write_text(config.read_text().replace("[server]", "[server]\nworkers = 2"))
        process.send_signal(signal.SIGHUP)
        await until(lambda: (tmp_path / "run" / REFUSED).exists() or workers_of(process.pid) != before)
        assert workers_of(process.pid) == before


async def test_a_run_folder_that_is_cleared_away_is_laid_anew(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No request fails, every decision is stored, and the sockets of managed servers and workers that die come back,
    with the configuration in force.
    """
    config, port, admin_port = write_config(tmp_path)
    run = tmp_path / "run"
    async with served(config) as process, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        async def ask() -> None:
            answer = await client.post("/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer hg-master"})
            assert answer.status_code == 200, answer.text

        stated = config.read_bytes()
        config.write_text("not = [ready")
        await ask()
        before = workers_of(process.pid)
        shutil.rmtree(run)
        asked = 1
        async with asyncio.timeout(PATIENCE_S):
            while not set(workers_of(process.pid)).isdisjoint(before) or not list(run.glob("*.door")):
                await ask()
                asked += 1
                await asyncio.sleep(0.05)
        assert (run / "config.toml").read_bytes() == stated and run.stat().st_mode & 0o077 == 0
        assert len(list(run.glob("*.sock"))) == 1
        (last,) = workers_of(process.pid)
        os.kill(last, signal.SIGKILL)
        await until(lambda: workers_of(process.pid) not in ([], [last]))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
            await ask()
        async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient(base_url=f"http://127.0.0.1:{admin_port}") as control:
            while True:
                with suppress(httpx.TransportError):
                    if (await control.get("/readyz")).json()["status"] == "ready":
                        break
                await asyncio.sleep(0.1)
    with closing(sqlite3.connect(tmp_path / "journal.db")) as database:
        assert database.execute("SELECT count(*) FROM decisions").fetchone() == (asked + 1,)
    assert f"server.run_dir {run} was cleared away" in capfd.readouterr().err


async def test_a_run_folder_that_is_cleared_away_in_a_reload_is_laid_anew(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It has the configuration of the new workers as soon as one of them has started with it."""
    config, _, _ = write_config(tmp_path)
    run = tmp_path / "run"
    async with served(config) as process:
        before = workers_of(process.pid)
        stated = config.read_text() + "# changed\n"
        config.write_text(stated)
        process.send_signal(signal.SIGHUP)
        await until(lambda: len(list(run.glob("worker-*.door"))) > 1)
        shutil.rmtree(run)
        await until(lambda: (run / "config.toml").exists() and not set(workers_of(process.pid)) & set(before))
        assert (run / "config.toml").read_text() == stated
    said = capfd.readouterr().err
    assert "was cleared away" in said and "never retrieved" not in said, said


def test_as_many_files_as_the_system_allows() -> None:
    """The limit of open files is raised, whatever a shell has set."""
    asks = "from gateway.serve.listen import raise_file_limit as r; import resource; r(); print(*resource.getrlimit(7))"
    shell = f'ulimit -Sn 100; exec {sys.executable} -c "{asks}"'
    soft, hard = subprocess.run(shell, shell=True, capture_output=True, text=True, check=True).stdout.split()
    assert soft == hard
