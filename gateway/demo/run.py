"""`headgate demo`: routing on a real workload, with nothing but the files of the repository.

Starts a gateway with the two shipped models and trains a router from feedback. Then sends the same unseen questions in
four ways: always to the small model, always to the large one, by the trained router, and by the router with a cascade.
Checks every answer against the known truth, and prints the savings with their intervals.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gateway.demo.report import Sent, Way, report_ways
from local_models.tasks import Question, held_out_questions, is_right

IN_FLIGHT = 8
REPEATED = 0.15
"""Share of the test questions that repeat an earlier one, for the cache."""
LEARN_SHARE = 0.4
"""Share of all questions that the router is trained on."""
WAYS = (
    ("always small", "tiny-small"),
    ("always large", "tiny-large"),
    ("router", "routed"),
    ("router+cascade", "auto"),
)

HOME = """
[server]
port = {port}
admin_port = {admin_port}
run_dir = "{folder}/run"
[storage]
url = "sqlite:///{folder}/headgate.db"
[telemetry]
log_level = "warning"
[[providers]]
name = "home"
kind = "local"
[[models]]
name = "tiny-small"
provider = "home"
input_usd_per_mtok = 0.05
output_usd_per_mtok = 0.20
context_tokens = 512
max_output_tokens = 64
logprobs = true
[[models]]
name = "tiny-large"
provider = "home"
input_usd_per_mtok = 0.50
output_usd_per_mtok = 2.00
context_tokens = 512
max_output_tokens = 64
logprobs = true
"""
"""Configuration of ports, folder and the two shipped models, to which routes are appended."""

LEARNING = """
[[routes]]                    # both models equally often, text kept for training
name = "learn"
models = ["tiny-small", "tiny-large"]
router = "weighted"
store_text = true
"""
LEARNT = """
[[routes]]                    # the trained router, one model per question
name = "routed"
models = ["tiny-small", "tiny-large"]
router = "{router}"
cost_weight = 0.5
cache = "exact"
[[routes]]                    # cheaper, as the large model answers what the small one was unsure of
name = "auto"
models = ["tiny-small", "tiny-large"]
router = "{router}"
cost_weight = 0.6
cascade = "confidence"
accept_at = 0.9
cache = "exact"
"""


@dataclass(slots=True)
class Demo:
    """One run of the demo."""

    folder: Path
    console: Console
    port: int
    admin_port: int

    @property
    def config(self) -> Path:
        return self.folder / "headgate.toml"

    def write_config(self, routes: str, **more: object) -> None:
        """`more`: values of the placeholders in `routes`."""
        self.config.write_text(
            (HOME + routes).format(port=self.port, admin_port=self.admin_port, folder=self.folder, **more)
        )

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[None]:
        """Run `headgate serve` in a process of its own."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "serve", "--config", str(self.config), stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            line = await asyncio.wait_for(process.stdout.readline(), 120)
            if b"answers on" not in line:
                raise typer.Exit(1)
            yield
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()

    async def send(self, model: str, questions: Sequence[Question], *, feedback: bool) -> list[Sent]:
        """Ask every question over HTTP with the official client, and check each answer. `feedback`: send the score back
        to the gateway.
        """
        from openai import AsyncOpenAI

        client = AsyncOpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0)
        gate = asyncio.Semaphore(IN_FLIGHT)
        done: list[Sent] = []
        with self.progress() as progress:
            bar = progress.add_task(model, total=len(questions))

            async def ask(question: Question) -> Sent:
                async with gate:
                    begun = time.perf_counter()
                    raw = await client.chat.completions.with_raw_response.create(
                        model=model,
                        messages=[{"role": "user", "content": question.prompt}],
                        temperature=0,
                        max_tokens=48,
                    )
                    took_s = time.perf_counter() - begun
                    text = raw.parse().choices[0].message.content or ""
                    right = is_right(question, text)
                    if feedback:
                        decision = raw.headers["x-headgate-decision-id"]
                        score = {"decision_id": decision, "score": float(right), "source": "demo"}
                        await client.post("/feedback", body=score, cast_to=object)
                    progress.advance(bar)
                    return Sent.of(question, right, took_s, raw.headers)

            # One half after the other, so that a repeated question finds its answer in the cache.
            for part in np.array_split(np.arange(len(questions)), 2):
                done += await asyncio.gather(*(ask(questions[int(i)]) for i in part))
        await client.close()
        return done

    def progress(self) -> Progress:
        columns = (TextColumn("  {task.description:14}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        return Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)

    async def learn(self) -> Path:
        """Export the journal as a data set and train a router on it, with the commands that an operator uses."""
        data, artifact = self.folder / "outcomes", self.folder / "router.safetensors"
        await self.command("export", "--config", str(self.config), "--route", "learn", "--out", str(data))
        await self.command("train", "--data", str(data), "--router", "linear", "--out", str(artifact))
        return artifact

    async def command(self, *words: str) -> None:
        """Run `headgate` with these arguments. Prints its output and exits with status 1 if it fails."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", *words,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        if process.returncode:
            self.console.print(f"headgate {' '.join(words)} failed:\n{output.decode()}", style="red")
            raise typer.Exit(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def workload(count: int, seed: int) -> tuple[list[Question], list[Question]]:
    """Questions for training, and others for the test, of which a share of REPEATED repeats earlier ones."""
    learning = round(count * LEARN_SHARE)
    questions = held_out_questions(count * 3, seed=seed)
    fresh = list({question.prompt: question for question in questions}.values())
    train, test = fresh[:learning], fresh[learning:count]
    rng = random.Random(seed)
    repeats = round(len(test) * REPEATED)
    test = test[: len(test) - repeats]
    half = len(test) // 2
    repeated = rng.choices(test[:half], k=repeats)
    rest = test[half:] + repeated
    rng.shuffle(rest)
    return train, test[:half] + rest


async def run(queries: int, *, seed: int, as_json: bool) -> int:
    console = Console(stderr=as_json)
    train, test = workload(queries, seed)
    with tempfile.TemporaryDirectory(prefix="headgate-demo-") as name:
        demo = Demo(Path(name), console, free_port(), free_port())
        console.print(f"[bold]1.[/] Learning from {len(train)} questions, half to each model, with feedback")
        demo.write_config(LEARNING)
        async with demo.gateway():
            await demo.send("learn", train, feedback=True)
        console.print("[bold]2.[/] Training a router on what the journal recorded")
        artifact = await demo.learn()
        demo.write_config(LEARNT, router=artifact)
        console.print(f"[bold]3.[/] {len(test)} questions never seen before, sent in {len(WAYS)} ways")
        async with demo.gateway():
            ways = [Way(title, await demo.send(model, test, feedback=False)) for title, model in WAYS]
    report = report_ways(ways, baseline="always large", rng=np.random.default_rng(seed))
    if as_json:
        typer.echo(msgspec.json.encode(report).decode())
    else:
        show(console, report)
    return 0


def show(console: Console, report: dict[str, Any]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in ("right", "$/1,000", "saved", "p50 ms", "p95 ms", "large", "cached"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in report["ways"]:
        table.add_row(
            row["way"],
            f"{row['accuracy']:.1%}",
            f"{row['usd_per_1000']:.4f}",
            f"{row['saved']['value']:.0%}" if row["way"] != report["baseline"] else "",
            f"{row['p50_s'] * 1e3:.0f}",
            f"{row['p95_s'] * 1e3:.0f}",
            f"{row['large_share']:.0%}",
            f"{row['cache_hits']:.0%}",
        )
    console.print(table)
    for row in report["ways"][2:]:
        change = row["accuracy_difference"]
        console.print(
            f"[bold]{row['way']}[/] saved {percent(row['saved'])} of always large's bill, with right answers "
            f"{change['value']:+.1%} ({change['low']:+.1%} to {change['high']:+.1%})",
            highlight=False,
            soft_wrap=True,
        )
    console.print("Intervals: 95 %, bootstrap over questions, paired.")
    console.print("Keep one running: [bold]make serve[/]. Its dashboard is at http://127.0.0.1:8081")


def percent(figure: dict[str, float]) -> str:
    return f"{figure['value']:.0%} ({figure['low']:.0%} to {figure['high']:.0%})"
