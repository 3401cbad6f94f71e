"""A live gateway with a model, a route and a key for each case, and checks that nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.journal.frames import SUFFIX, read_frames
from gateway.journal.record import DecisionRecord
from gateway.journal.ship import decode_record
from tests.faults.cases import FALLBACK_TEXT, TEXT, Case
from tests.faults.endings import ending_of
from tests.faults.talk import Heard, ask, question
from tests.live import Live, live
from tests.until import until

SILENCE_S = 1.5
"""Timeout in seconds for cases whose fault is silence; other cases get as long as a busy machine needs."""
DEADLINE_S = 1.0
PRICES = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 4.0}


@dataclass(slots=True)
class Result:
    """How a case ended, and what it left in the ledger and the journal."""

    case: Case
    heard: Heard
    ending: str
    record: DecisionRecord
    spent: int
    held: int
    """At the end of the case."""
    counted: int
    """Failures that the breaker of the faulty deployment counted."""


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Checks that no tasks and open files are left."""
    tasks, files = asyncio.all_tasks(), open_files()
    yield
    try:
        await until(lambda: open_files() <= files and asyncio.all_tasks() <= tasks)
    except TimeoutError:
        raise AssertionError((asyncio.all_tasks() - tasks, open_files(), files)) from None


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@asynccontextmanager
async def stage(folder: Path, cases: Sequence[Case]) -> AsyncIterator[Live]:
    """A gateway with a route, a model and a key for every case, under the case's name."""
    with socket.socket() as deaf:  # a bound socket that doesn't listen refuses connections
        deaf.bind(("127.0.0.1", 0))
        deaf_url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        silence_s = SILENCE_S if any(case.fault.is_silence for case in cases) else 15.0
        scripts = {}
        for case in cases:
            honest = {name: value for name, value in case.fault.step.items() if name != "refused"}
            scripts[case.name] = [{"text": TEXT, **honest}]
            scripts[f"{case.name}-other"] = [{"text": FALLBACK_TEXT}]
        async with live(
            folder,
            scripts=scripts,
            models=[model for case in cases for model in _models(case)],
            routes=[_route(case) for case in cases],
            auth={"keys": [{"name": case.name, "key": f"hg-{case.name}", "budget_usd": 1.0} for case in cases]},
            server={"first_byte_timeout_s": silence_s, "stall_timeout_s": silence_s, "request_timeout_s": 20},
            providers=[
                {"name": "own", "kind": "openai", "base_url": "UPSTREAM", "api_key": "k", "responses": True},
                {"name": "deaf-own", "kind": "openai", "base_url": deaf_url, "api_key": "k", "responses": True},
                {"name": "deaf-up", "kind": "openai", "base_url": deaf_url, "api_key": "k"},
                {"name": "deaf-claude", "kind": "anthropic", "base_url": deaf_url, "api_key": "k"},
            ],
        ) as gateway:
            yield gateway


def _models(case: Case) -> list[dict[str, Any]]:
    provider = f"deaf-{case.provider}" if "refused" in case.fault.step else case.provider
    return [
        {"name": case.name, "provider": provider, **PRICES},
        {"name": f"{case.name}-other", "provider": case.provider, **PRICES},
    ]


def _route(case: Case) -> dict[str, Any]:
    more = {"fallback": [f"{case.name}-other"], "retries": 0} if case.fallback else {"retries": 1}
    return {"name": f"route-{case.name}", "models": [case.name], "router": "cheapest", **more}


async def meet(gateway: Live, case: Case) -> Heard:
    """Send one request with the case's own key."""
    deadline_s = DEADLINE_S if case.fault.where == "late" else 15.0
    return await ask(
        gateway.url,
        case.surface,
        question(case.surface, f"route-{case.name}", stream=case.stream),
        authorization=f"Bearer hg-{case.name}",
        x_stainless_read_timeout=str(deadline_s),
    )


async def run_cases(folder: Path, cases: Sequence[Case]) -> list[Result]:
    """Runs all cases at once on one gateway, and then checks what must hold for the gateway as a whole."""
    async with nothing_left(), stage(folder, cases) as gateway:
        heards = await asyncio.gather(*(meet(gateway, case) for case in cases))
        await gateway.rest()
        await upstream_rests(gateway)
        records = decisions(gateway)
        assert len(records) == len(cases), "a decision is recorded once"
        by_id = {record.id: record for record in records}
        results = [
            judge(gateway, case, heard, by_id[heard.decision_id])
            for case, heard in zip(cases, heards, strict=True)
        ]
    assert not gateway.upstream.connections
    return results


async def upstream_rests(gateway: Live) -> None:
    """Waits until the upstream answers nobody any more, which shows that abandoned requests were cancelled."""
    await until(lambda: not any(connection.playing for connection in gateway.upstream.connections))


def judge(gateway: Live, case: Case, heard: Heard, record: DecisionRecord) -> Result:
    texts = {"answer": TEXT, "fallback": FALLBACK_TEXT}
    ending = ending_of(case.surface, heard, stream=case.stream, texts=texts)
    services = gateway.services
    caller = services.keyring.identify(f"Bearer hg-{case.name}".encode(), None, "127.0.0.1", services.clock())
    spent, held = services.ledger.balance(caller.accounts[0])  # type: ignore[attr-defined]
    failed = services.fleet.deployments(case.name)[0].failures
    return Result(case, heard, ending, record, spent, held, failed)


def decisions(gateway: Live) -> list[DecisionRecord]:
    """Every decision record in the spool, duplicates included."""
    found = []
    for path in sorted(gateway.services.spool_dir.glob(f"*{SUFFIX}")):
        for frame in read_frames(path.read_bytes(), final=True):
            assert not frame.damaged
            record = decode_record(frame.payload)
            if isinstance(record, DecisionRecord):
                found.append(record)
    return found


def failures(record: DecisionRecord) -> Counter[str]:
    return Counter(attempt.failure for attempt in record.attempts)
