"""`headgate batch run` and `batch status` as people use them, as real processes."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import sys
from pathlib import Path

from gateway.providers.scripted import ScriptedServer
from tests.gateway.batch.made import read
from tests.gateway.batch.test_kill import configuration, start, write_prompts


async def headgate(folder: Path, *words: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "batch", *words, "--config", str(folder / "headgate.toml"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_a_job_ended_by_sigterm_goes_on_with_the_same_command(tmp_path: Path) -> None:
    """Status 1 and what is done; changed input is refused; the same words finish it; nothing is paid for again."""
    async with ScriptedServer({"small": [{"delay_s": 0.05}]}) as upstream:
        configuration(tmp_path, upstream.url)
        prompts = write_prompts(tmp_path, 80)
        run = await start(tmp_path, prompts)
        while upstream.seen.requests < 10:
            await asyncio.sleep(0.01)
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
    """What `plan` says at its end is what runs it; bad lines that were skipped are told and are errors of the job."""
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
