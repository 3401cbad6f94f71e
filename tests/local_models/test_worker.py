"""An engine in its thread, as the event loop sees it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from local_models.engine import Engine
from local_models.errors import EngineDead, PromptTooLong
from local_models.request import Event, Finished
from local_models.worker import Worker
from tests.local_models.checkpoints import engine, greedy

Start = Callable[[Engine], Worker]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts workers and stops them."""
    workers: list[Worker] = []

    def start(engine: Engine) -> Worker:
        workers.append(Worker(engine))
        workers[-1].start()
        return workers[-1]

    yield start
    for worker in workers:
        await asyncio.to_thread(worker.stop)


async def all_events(worker: Worker, name: str, tokens: int = 8) -> list[Event]:
    return [event async for event in worker.generate(greedy(name, [5, 6, 7], tokens))]


async def test_each_reader_gets_its_own_events(start: Start) -> None:
    """The last of them is its end."""
    worker = start(engine())
    answers = await asyncio.gather(*(all_events(worker, str(at)) for at in range(20)))
    for at, events in enumerate(answers):
        assert {event.request_id for event in events} == {str(at)}
        assert [isinstance(event, Finished) for event in events] == [False] * 8 + [True]


async def test_a_refusal_is_raised_in_its_caller(start: Start) -> None:
    """The worker continues."""
    worker = start(engine(kv_tokens=64))
    with pytest.raises(PromptTooLong):
        await all_events(worker, "a", tokens=500)
    assert len(await all_events(worker, "b")) == 9


async def test_leaving_early_cancels(start: Start) -> None:
    """A reader that stops reading frees its blocks."""
    worker = start(engine())
    stream = worker.generate(greedy("a", [5], 400))
    await anext(stream)
    await stream.aclose()
    assert not await worker.ask(lambda: worker.engine.busy)
    await worker.ask(worker.engine.audit)


async def test_an_idle_engine_is_audited(start: Start) -> None:
    """After the last answer the blocks are counted; a leak is logged, and no answer is affected."""
    worker = start(engine())
    await all_events(worker, "a")
    await worker.ask(lambda: None)
    assert (worker.audits, worker.audits_failed) == (1, 0)
    lost = worker.engine.blocks._allocate(1)
    worker._audited_s = float("-inf")
    assert len(await all_events(worker, "b")) == 9
    await worker.ask(lambda: None)
    assert lost and (worker.audits, worker.audits_failed) == (2, 1)


async def test_a_dead_engine_ends_every_request(start: Start) -> None:
    """All open requests get an error, and further ones are refused."""
    worker = start(engine())
    stream = worker.generate(greedy("a", [5], 400))
    await anext(stream)

    def fail(*_: object) -> list[Event]:
        raise RuntimeError("out of order")

    worker.engine.step = fail  # type: ignore[method-assign]
    last = [event async for event in stream][-1]
    assert isinstance(last, Finished) and last.reason == "error" and "out of order" in last.message
    assert isinstance(worker.dead, RuntimeError)
    with pytest.raises(EngineDead):
        await all_events(worker, "b")


async def test_a_waiting_job_is_refused_when_the_engine_dies(start: Start) -> None:
    """It was submitted while the fatal step ran."""
    worker = start(engine())
    in_step, go_on = threading.Event(), threading.Event()

    def fail() -> list[Event]:
        in_step.set()
        assert go_on.wait(60)
        raise RuntimeError("out of order")

    worker.engine.step = fail  # type: ignore[method-assign]
    reading = asyncio.ensure_future(all_events(worker, "a"))
    assert await asyncio.to_thread(in_step.wait, 60)
    asked = [asyncio.ensure_future(all_events(worker, "b")), asyncio.ensure_future(worker.ask(lambda: 1))]
    await asyncio.sleep(0)
    go_on.set()
    outcomes = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 60)
    assert all(isinstance(outcome, EngineDead) for outcome in outcomes)
    last = (await reading)[-1]
    assert isinstance(last, Finished) and last.reason == "error"


async def test_stopping_ends_open_requests(start: Start) -> None:
    """Their readers get an end."""
    worker = start(engine())
    stream = worker.generate(greedy("a", [5], 400))
    await anext(stream)
    await asyncio.to_thread(worker.stop)
    last = [event async for event in stream][-1]
    assert isinstance(last, Finished) and last.reason == "cancelled"
    assert not any(thread.name == "engine" and thread.is_alive() for thread in threading.enumerate())
