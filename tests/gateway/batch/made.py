"""Plans made by hand, and a job run to its end in this process."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gateway.batch.assign import replan
from gateway.batch.execute import LocalFiles, execute, shipping
from gateway.batch.jobs import Card, Job, Jobs, owner_name
from gateway.batch.lease import RunnerOptions
from gateway.batch.run import Endpoints, Runner
from gateway.batch.types import Arm, Assignment, Duplicate, Estimates, Plan, Point, Prompts, PromptWriter
from gateway.journal.schema import migrate, open_engine
from gateway.keys import Caller
from gateway.services import Services
from routers.intervals import Interval

ME = Caller("batch", "batch", tenant="default", explore=False)


def chat(model: str, text: str, **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}], **fields}).encode()


def prompts(folder: Path, bodies: Sequence[bytes], url: str = "/v1/chat/completions") -> Prompts:
    folder.mkdir(parents=True, exist_ok=True)
    writer = PromptWriter(folder / "prompts.jsonl")
    for line, body in enumerate(bodies, 1):
        text = str(json.loads(body)["messages"][-1]["content"])
        writer.add(line, f"row-{line}", url, body, text)
    return writer.close()


def estimates(arms: Sequence[Arm], n: int, quality: Mapping[str, float], cost_usd: Mapping[str, float]) -> Estimates:
    """Estimates that are the same for every prompt, by the arm's label."""
    def row(values: Sequence[float]) -> Any:
        return np.tile(np.array(values, np.float32), (n, 1))

    zeros = np.zeros((n, len(arms)), np.float32)
    return Estimates(
        tuple(arms),
        row([quality[arm.label] for arm in arms]),
        zeros,
        row([cost_usd[arm.label] for arm in arms]),
        zeros + 8,
        zeros + np.nan,
        np.full(n, 8, np.float32),
        np.zeros(n, np.float32),
        np.zeros(len(arms), np.float32),
        np.zeros(len(arms), np.float32),
    )


def plan(
    folder: Path,
    bodies: Sequence[bytes],
    table: Estimates,
    *,
    budget_usd: float = math.inf,
    duplicates: Sequence[Duplicate] = (),
    deadline_s: float = math.inf,
    url: str = "/v1/chat/completions",
) -> Plan:
    asked = prompts(folder, bodies, url)
    rest = np.arange(len(asked))
    assignment: Assignment = replan(table, rest, budget_usd)
    nothing = Interval(0.0, 0.0, 0.0)
    point = Point(budget_usd, nothing, nothing, {}, 0.0)
    made = Plan(
        "made", "auto", asked, tuple(duplicates), (), table, assignment, (point,), point, budget_usd, deadline_s
    )
    made.save(folder)
    return made


@dataclass(slots=True)
class Done:
    """The result of a job."""

    job: Job
    jobs: Jobs
    output: list[dict[str, Any]]
    errors: list[dict[str, Any]]
    progress: list[Any]

    @property
    def spent_usd(self) -> float:
        return self.jobs.spent(self.job.id) / 1e9


def open_jobs(services: Services) -> Jobs:
    url = str(services.config.storage.url)
    migrate(url)
    return Jobs(open_engine(url))


def new_job(jobs: Jobs, made: Plan, folder: Path, **card: Any) -> Job:
    given: dict[str, Any] = {"source": "made", "budget_usd": None if math.isinf(made.budget_usd) else made.budget_usd}
    given |= {"out": str(folder / "out.jsonl"), "errors_out": str(folder / "errors.jsonl"), **card}
    job = jobs.add("default", "command", Card(**given), time.time())
    claimed = jobs.claim(job.id, owner_name(), time.time())
    assert claimed is not None
    return claimed


async def carried(
    services: Services,
    made: Plan,
    folder: Path,
    *,
    endpoints: Endpoints | None = None,
    on_start: Any = None,
    **card: Any,
) -> Done:
    """Runs a job from its plan to its results."""
    jobs = open_jobs(services)
    job = new_job(jobs, made, folder, **card)
    seen: list[Any] = []
    options = RunnerOptions(on_progress=seen.append)
    async with shipping(services.spool_dir, jobs.engine):
        job = await execute(services, jobs, job, made, ME, LocalFiles(), options, endpoints, on_start)
    return Done(job, jobs, read(Path(job.card.out)), read(Path(job.card.errors_out)), seen)


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix != ".jsonl" or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


__all__ = ["ME", "Done", "Runner", "carried", "chat", "estimates", "new_job", "open_jobs", "plan", "prompts", "read"]
