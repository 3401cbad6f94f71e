"""Applies the faults one after the other under load, and checks every promise afterwards."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.faults import Fault
from tests.chaos.load import Load
from tests.chaos.stage import World, world

BUDGET_ANSWERS = 60
PURSE_CLIENTS = 3
RECOVERY_S = 150.0


@dataclass(slots=True)
class Result:
    """The effects of a fault."""

    fault: str
    skipped: str = ""
    during: Counter[str] = field(default_factory=Counter)
    """Outcomes of requests from the fault's beginning to its end."""
    after: Counter[str] = field(default_factory=Counter)
    """Outcomes from the fault's end to the recovery."""
    longest_s: float = 0.0
    """The slowest right answer meanwhile."""
    recovered_s: float = 0.0
    """Seconds from the fault's end until requests are answered, a decision reaches the database and budgets are shared.
    """
    bought: int = 0
    """Answers of the upstream with the purse's model."""
    sold: int = 0
    """Those answers that a client received completely."""
    budget: int = BUDGET_ANSWERS

    @property
    def complaints(self) -> list[str]:
        """The promises that were not kept."""
        found = []
        if self.during["WRONG"] or self.after["WRONG"]:
            found.append("wrong answers")
        if self.sold > self.budget:
            found.append(f"overspent: {self.sold} answers on a budget of {self.budget}")
        return [f"{self.fault}: {one}" for one in found]


@dataclass(slots=True)
class Report:
    results: list[Result] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    answered: int = 0
    acknowledged: int = 0
    lost_answers: int = 0
    """Decisions of complete answers that are not in the database, although there was a disk for them."""
    lost_feedback: int = 0
    twice: int = 0


@dataclass(slots=True)
class Scale:
    """The amount of load."""

    clients: int = 12
    answers: int = 60
    """Number of right answers or refusals to see while a fault lasts."""
    longest_s: float = 4.0
    """Seconds after which a fault ends in any case."""
    away: str = "refuse"
    """The setting storage.redis_away: what happens to budgets while Redis is away."""


async def run(folder: Path, faults: Sequence[Fault], scale: Scale, say: Callable[[str], None]) -> Report:
    report = Report()
    async with world(folder, [fault.purse for fault in faults], BUDGET_ANSWERS, scale.away) as stage:
        load = Load(stage.url)
        unrecorded: set[str] = set()
        async with pressed(load, scale.clients):
            for fault in faults:
                say(fault.name)
                report.results.append(await strike(stage, load, fault, scale, unrecorded))
        await settle_down(stage, load, report, unrecorded)
    for result in report.results:
        report.complaints += result.complaints
    report.complaints += [f"wrong: {one}" for one in load.wrong[:5]]
    if report.lost_answers or report.lost_feedback or report.twice:
        report.complaints.append(
            f"lost: {report.lost_answers} decisions, {report.lost_feedback} feedback; twice: {report.twice}"
        )
    return report


@asynccontextmanager
async def pressed(load: Load, clients: int) -> AsyncIterator[None]:
    """Clients of two tenants without a tight budget, throughout the run."""
    asking = [
        asyncio.create_task(load.client(number, "rich" if number % 3 else "other")) for number in range(clients)
    ]
    try:
        yield
    finally:
        await stopped(asking)


async def stopped(asking: Sequence[asyncio.Task[None]]) -> None:
    for task in asking:
        task.cancel()
    for ended in await asyncio.gather(*asking, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended


async def strike(stage: World, load: Load, fault: Fault, scale: Scale, unrecorded: set[str]) -> Result:
    """Applies one fault under load, until the gateway has recovered and the fault's purse is empty."""
    result = Result(fault.name)
    if fault.needs and getattr(stage, fault.needs) is None:
        result.skipped = f"this machine has no {fault.needs} to play with"
        return result
    purse = fault.purse
    await grown(lambda: sum(load.right.values()), 10, 20.0)
    asking = [asyncio.create_task(load.client(100 + n, purse, purse)) for n in range(PURSE_CLIENTS)]
    try:
        await grown(lambda: load.right[purse], BUDGET_ANSWERS // 6, 20.0)
        first = len(load.answered)
        load.turn()
        await fault.begin(stage)
        await grown(lambda: sum(load.outcomes.values()), scale.answers, scale.longest_s)
        await fault.end(stage)
        over = time.monotonic()
        result.during, result.longest_s = load.turn()
        await recover(stage, load, result, over)
        result.recovered_s = time.monotonic() - over
        if not fault.keeps_journal:
            unrecorded.update(load.answered[first:])
        await spent_out(load, purse)
    finally:
        await stopped(asking)
    result.after, longest_s = load.turn()
    result.longest_s = max(result.longest_s, longest_s)
    result.sold = load.right[purse]
    result.bought = stage.upstream.seen.by_model.get(purse, 0)
    return result


async def grown(count: Callable[[], int], by: int, within_s: float) -> None:
    """Waits until the count has grown by this much, or the time is over."""
    target, deadline = count() + by, time.monotonic() + within_s
    while count() < target and time.monotonic() < deadline:
        await asyncio.sleep(0.01)


async def recover(stage: World, load: Load, result: Result, over: float) -> None:
    """Waits for twenty right answers in a row, and for a decision made since then to be in the database; raises
    AssertionError after RECOVERY_S.
    """
    deadline = over + RECOVERY_S
    while time.monotonic() < deadline:
        before = sum(load.right.values())
        await grown(lambda: sum(load.right.values()), 20, RECOVERY_S)
        if sum(load.right.values()) - before < 20:
            break
        if await arrived(stage, load.answered[-1], deadline):
            return
    result.after["NOT RECOVERED"] += 1
    raise AssertionError(f"no recovery from {result.fault} within {RECOVERY_S} s: {load.outcomes} {load.wrong[:3]}")


async def arrived(stage: World, decision_id: str, deadline: float) -> bool:
    """Whether the decision reaches the database in time."""
    while time.monotonic() < deadline:
        told, _ = await asyncio.to_thread(stage.stored)
        if decision_id in told:
            return True
        await asyncio.sleep(0.05)
    return False


async def spent_out(load: Load, purse: str) -> None:
    """Waits until the purse's clients are always refused: the budget is spent, or the rest is still held."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        before = load.right[purse]
        await grown(lambda: load.right[purse], 1, 1.0)
        if load.right[purse] == before:
            return


async def settle_down(stage: World, load: Load, report: Report, unrecorded: set[str]) -> None:
    """After the last request, checks that everything that was acknowledged is in the database once."""
    deadline = time.monotonic() + RECOVERY_S
    answered, acknowledged = set(load.answered) - unrecorded, set(load.acknowledged)
    while True:
        told, heard = await asyncio.to_thread(stage.stored)
        if (answered <= set(told) and acknowledged <= heard) or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.1)
    report.answered, report.acknowledged = len(load.answered), len(load.acknowledged)
    report.lost_answers = len(answered - set(told))
    report.lost_feedback = len(acknowledged - heard)
    report.twice = len(told) - len(set(told))
