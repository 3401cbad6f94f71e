"""`headgate batch run` as a real process, and the commands that control its jobs."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from gateway.journal.schema import migrate
from gateway.providers.scripted import ScriptedServer
from tests import command
from tests.gateway.batch.made import read
from tests.gateway.batch.test_kill import configuration, start, write_prompts
from tests.postgres_server import PostgresServer
from tests.until import until

pytestmark = pytest.mark.usefixtures("commands_end")


async def headgate(folder: Path, *words: str) -> tuple[int | None, str, str]:
    """Runs jobs in a process of their own, because they handle signals, and everything else in this process."""
    if words[0] != "run":
        return await asyncio.to_thread(command.headgate, "batch", *words, "--config", folder / "headgate.toml")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "batch", *words, "--config", str(folder / "headgate.toml"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_a_job_ended_by_sigterm_continues_with_the_same_command(tmp_path: Path) -> None:
    """It ends with status 1 and its progress; changed input is refused; the same command finishes it, and nothing is
    paid twice.
    """
    async with ScriptedServer({"small": [{"delay_s": 0.05}]}) as upstream:
        configuration(tmp_path, upstream.url)
        prompts = write_prompts(tmp_path, 80)
        run = await start(tmp_path, prompts)
        await until(lambda: upstream.seen.requests >= 10)
        run.send_signal(signal.SIGTERM)
        out, err = await run.communicate()
        told = json.loads(out)
        assert run.returncode == 1 and told["state"] == "running" and 0 < told["done"] < 80, err.decode()
        assert not (tmp_path / "out.jsonl").exists()
        lines = prompts.read_text()
        prompts.write_text(lines + lines.splitlines()[0].replace("c-0", "c-80") + "\n")
        changed = await start(tmp_path, prompts)
        _, err = await changed.communicate()
        assert changed.returncode == 2 and b"input has changed" in err
        prompts.write_text(lines)
        again = await start(tmp_path, prompts)
        out, err = await again.communicate()
        assert again.returncode == 0, err.decode()
        done = json.loads(out)
        assert done["id"] == told["id"] and done["done"] == 80 and done["at_risk_usd"] == 0.0
        assert upstream.seen.requests == 79 and len(read(tmp_path / "out.jsonl")) == 80
        once_more = await start(tmp_path, prompts)
        _, err = await once_more.communicate()
        assert once_more.returncode == 2 and b"there already" in err and upstream.seen.requests == 79
        code, shown, _ = await headgate(tmp_path, "status", told["id"], "--json")
        assert code == 0 and json.loads(shown)["spent_usd"] == done["spent_usd"]
    assert not list((tmp_path / "run" / "plans").iterdir()), "the plan is of no use any more"


async def test_a_plan_is_run_by_the_command_that_it_names(tmp_path: Path) -> None:
    """The last line of `plan` is the command that runs it. Skipped bad lines are reported and become errors of the job.
    """
    async with ScriptedServer({}) as upstream:
        configuration(tmp_path, upstream.url)
        prompts = write_prompts(tmp_path, 5)
        prompts.write_text("{broken\n" + prompts.read_text())
        code, shown, _ = await headgate(tmp_path, "plan", str(prompts), "--skip-bad", "--out", str(tmp_path / "a plan"))
        assert code == 0
        words = shlex.split(shown.rpartition("run it with:")[2])
        assert words[:3] == ["headgate", "batch", "run"]
        out = tmp_path / "out.jsonl"
        code, shown, err = await headgate(tmp_path, *words[2:], "--out", str(out))
        assert code == 0 and "1 bad line" in shown and "line 1: not JSON" in shown, err
        assert len(read(out)) == 5
        (error,) = read(tmp_path / "out.errors.jsonl")
        assert error["error"]["code"] == "invalid_json" and error["response"] is None


@asynccontextmanager
async def gate(upstream: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """The URL of an upstream that doesn't answer until the event is set."""
    opened, port = asyncio.Event(), int(upstream.split(":")[2].split("/")[0])

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await opened.wait()
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, outer), copy(inner, writer))

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while said := await reader.read(1 << 16):
                writer.write(said)
        writer.close()

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    async with server:
        yield upstream.replace(str(port), str(server.sockets[0].getsockname()[1])), opened


async def test_two_commands_at_once_run_one_job(tmp_path: Path) -> None:
    """With equal arguments, one answers the prompts, and the other says which process does; nothing is asked twice."""
    async with ScriptedServer({}) as upstream, gate(upstream.url) as (url, opened):
        configuration(tmp_path, url)
        prompts = write_prompts(tmp_path, 80)
        runs = [await start(tmp_path, prompts) for _ in range(2)]
        hearing = [asyncio.create_task(run.communicate()) for run in runs]
        await asyncio.wait(hearing, return_when=asyncio.FIRST_COMPLETED)  # else the first ends too soon
        opened.set()
        told = await asyncio.gather(*hearing)
        codes = sorted(run.returncode or 0 for run in runs)
        if codes == [2, 2]:  # each has seen the other
            again = await start(tmp_path, prompts)
            await again.communicate()
            codes = [again.returncode or 0, 2]
        assert codes == [0, 2] and upstream.seen.requests == 79
        assert any(b"is being run by" in err for _, err in told)
    assert len(read(tmp_path / "out.jsonl")) == 80
    assert not list((tmp_path / "run" / "plans").iterdir())


def test_an_unwritable_output_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    """The error is one line that says what is wrong; no job is created, and nothing is left of it."""
    config = configuration(tmp_path, "http://127.0.0.1:9/v1")
    prompts, taken = write_prompts(tmp_path, 5), tmp_path / "taken.jsonl"
    taken.write_text("mine")
    for words, said in (
        (("--out", "/proc/out.jsonl"), "/proc"),
        (("--out", str(tmp_path / "-")), "to a file"),
        (("--out", str(tmp_path / "out.csv")), "JSONL or Parquet"),
        (("--out", str(taken)), "there already"),
        (("--errors", str(taken)), "name another --errors"),
        (("--out", str(tmp_path / "one.jsonl"), "--errors", str(tmp_path / "one.jsonl")), "same file"),
    ):
        refused = command.headgate("batch", "run", prompts, *words, "--config", config)
        assert refused.code == 2 and said in refused.err and len(refused.err.splitlines()) == 1, (words, refused)
    assert "there is no batch job" in command.headgate("batch", "status", "--config", config).out
    assert taken.read_text() == "mine" and not list(tmp_path.glob("*.new"))


async def test_a_full_disk_loses_no_answer(tmp_path: Path) -> None:
    """If the results don't fit, the command says what to do; repeated, it writes them without asking again."""
    async with ScriptedServer({}) as upstream:
        configuration(tmp_path, upstream.url)
        prompts, out = write_prompts(tmp_path, 60), tmp_path / "full" / "out.jsonl"
        out.parent.mkdir()
        words = ["batch", "run", str(prompts), "--config", str(tmp_path / "headgate.toml"), "--out", str(out)]
        limited = (
            "import resource, signal, sys\n"
            "from gateway.batch import results\n"
            "from gateway.__main__ import main\n"
            "whole = results.write\n"
            "def write(*given):\n"
            "    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
            "    return whole(*given)\n"
            "results.write = write\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "main()\n"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", limited, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        _, err = await process.communicate()
        assert process.returncode == 2 and b"run the same command again" in err.splitlines()[-1], err.decode()
        assert list(out.parent.iterdir()) == []
        code, shown, _ = await headgate(tmp_path, "run", str(prompts), "--out", str(out))
        assert code == 0 and "60 of 60 answered" in shown and upstream.seen.requests == 59
    assert len(read(out)) == 60


async def test_a_job_survives_a_database_outage(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """Its calls continue, its end waits, and each is logged in one line; a command that is stopped meanwhile says how
    to continue.
    """
    async with ScriptedServer({"small": [{"delay_s": 0.05}]}) as upstream:
        config, url = configuration(tmp_path, upstream.url), postgres_server.new_database()
        config.write_text(config.read_text().replace(f"sqlite:///{tmp_path}/journal.db", url))
        migrate(url)
        prompts = write_prompts(tmp_path, 40)
        for stops in (True, False):
            run, before = await start(tmp_path, prompts), upstream.seen.requests
            await until(lambda: upstream.seen.requests >= before + 5)
            await asyncio.to_thread(postgres_server.stop)
            try:
                if stops:
                    run.send_signal(signal.SIGTERM)
                    _, err = await run.communicate()
                    assert run.returncode == 2 and b"run the same command again to go on" in err, err.decode()
                else:
                    await until(lambda: upstream.seen.requests == 39)
                    await asyncio.sleep(2.5)
                    assert run.returncode is None
            finally:
                await asyncio.to_thread(postgres_server.start)
        out, err = await run.communicate()
        assert run.returncode == 0, err.decode()
        assert json.loads(out)["done"] == 40 and upstream.seen.requests == 39
        assert err.count(b"the results of") == 2 and err.count(b"renewals of") <= 2, err.decode()
    assert len(read(tmp_path / "out.jsonl")) == 40


async def test_a_job_whose_plan_is_lost_continues(tmp_path: Path) -> None:
    """If the run folder was cleared after a crash, the input is planned again, and earlier answers are kept."""
    async with ScriptedServer({"small": [{"delay_s": 0.05}]}) as upstream:
        configuration(tmp_path, upstream.url)
        prompts = write_prompts(tmp_path, 80)
        run = await start(tmp_path, prompts)
        await until(lambda: upstream.seen.requests >= 30)
        run.send_signal(signal.SIGKILL)
        await run.communicate()
        shutil.rmtree(tmp_path / "run" / "plans")
        code, shown, _ = await headgate(tmp_path, "status", "--json")
        id = json.loads(shown)[0]["id"]
        code, shown, _ = await headgate(tmp_path, "pause", id)
        assert code == 0 and "it is not running now" in shown
        await headgate(tmp_path, "resume", id)
        again = await start(tmp_path, prompts)
        out, err = await again.communicate()
        assert again.returncode == 0 and json.loads(out)["id"] == id, err.decode()
        assert upstream.seen.requests - upstream.seen.repeated == 79
    assert len(read(tmp_path / "out.jsonl")) == 80
