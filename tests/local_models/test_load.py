"""Many concurrent streams with every kind of failure."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from local_models.errors import RequestRefused
from local_models.request import Finished, Request, Sampling
from local_models.worker import Worker
from tests.local_models.checkpoints import engine, prompts

ROUNDS = int(os.environ.get("HEADGATE_SOAK_ROUNDS", "3"))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def stream(worker: Worker, name: str, rng: random.Random, at: int) -> str:
    """One client: it may send an impossible request (the first does), disconnect early (the second does), or set a
    deadline; returns how it ended.
    """
    asked = prompts(1, rng.randrange(2**32), longest=120)[0]
    impossible = at == 0 or rng.random() < 0.05
    leaves_after = 1 if at == 1 else rng.randint(1, 20) if rng.random() < 0.2 else None
    deadline_s = worker.engine._clock() + rng.random() if rng.random() < 0.1 else None
    request = Request(
        name,
        tuple(asked),
        9999 if impossible else rng.randint(2, 60),
        Sampling(1.0, seed=rng.randrange(99)),
        ignore_end=leaves_after is not None,
        deadline_s=None if at < 2 else deadline_s,
    )
    events = worker.generate(request)
    seen = 0
    try:
        async for event in events:
            seen += 1
            if isinstance(event, Finished):
                return event.reason
            if leaves_after is not None and seen >= leaves_after:
                return "left"
    except RequestRefused:
        return "refused"
    finally:
        await events.aclose()
    return "no ending"


async def test_sixty_four_streams_leave_nothing_behind() -> None:
    """With cancellations, deadlines and impossible requests every client gets an end, no block is leaked, and memory
    doesn't grow from round to round. HEADGATE_SOAK_ROUNDS sets the number of rounds.
    """
    worker = Worker(engine(kv_tokens=2048, draft_tokens=2))
    worker.start()
    rng = random.Random(0)
    resident = []
    try:
        for round_ in range(ROUNDS):
            endings = await asyncio.wait_for(
                asyncio.gather(*(stream(worker, f"{round_} {at}", rng, at) for at in range(64))), 300
            )
            assert set(endings) <= {"stop", "length", "deadline", "left", "refused"}
            assert {"left", "refused"} <= set(endings)
            assert not await worker.ask(lambda: worker.engine.busy)
            await worker.ask(worker.engine.audit)
            resident.append(resident_bytes())
    finally:
        await asyncio.to_thread(worker.stop)
    half = len(resident) // 2
    assert resident[-1] - resident[half] < 32 * 2**20


@pytest.mark.parametrize("streams", [4])
async def test_a_killed_server_leaves_no_client_waiting(streams: int, tmp_path: Path) -> None:
    """When the process is killed every open stream breaks at once, so the caller can fail over."""
    import signal
    import subprocess
    import sys

    import httpx

    from tests.local_models.conftest import wait_until_healthy

    socket = tmp_path / "s.sock"
    command = [sys.executable, "-m", "local_models", "--uds", str(socket)]
    process = subprocess.Popen(command)
    try:
        await asyncio.to_thread(wait_until_healthy, socket, process)
        transport = httpx.AsyncHTTPTransport(uds=str(socket))
        async with httpx.AsyncClient(transport=transport, base_url="http://local", timeout=60) as client:
            begun = asyncio.Semaphore(0)

            async def read() -> None:
                body = {
                    "model": "tiny-large", "messages": [{"role": "user", "content": "x"}], "stream": True,
                    "ignore_eos": True, "max_tokens": 500,
                }  # fmt: skip
                async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                    async for line in answer.aiter_lines():
                        assert line != "data: [DONE]"
                        begun.release()

            readers = [asyncio.ensure_future(read()) for _ in range(streams)]
            for _ in range(streams):
                await begun.acquire()
            process.send_signal(signal.SIGKILL)
            endings = await asyncio.wait_for(asyncio.gather(*readers, return_exceptions=True), 60)
        assert all(isinstance(ending, httpx.TransportError) for ending in endings)
    finally:
        process.kill()
        process.wait()
