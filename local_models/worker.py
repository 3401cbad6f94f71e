"""An engine in a thread of its own, used from an asyncio loop.

The loop never computes, and the engine's thread never waits for a client: requests and cancellations are passed as
jobs, and events come back once per step. When the engine itself fails, every open request ends with an error, later
ones are refused, and `dead` tells the supervisor of the process to start a new one.

Whenever the engine falls idle its blocks are audited and unused memory is given back, at most once in `_AUDIT_EVERY_S`.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TypeVar

from local_models.engine import Engine
from local_models.errors import EngineDead
from local_models.request import Ending, Event, Finished, Request

_log = logging.getLogger(__name__)
T = TypeVar("T")
_AUDIT_EVERY_S = 1.0


class Worker:
    """Owns one engine and the thread that steps it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.dead: BaseException | None = None
        self.audits = 0
        self.audits_failed = 0
        self._audited_s = float("-inf")
        self._jobs: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._ended = False
        self._inboxes: dict[str, asyncio.Queue[Event]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread; call inside the loop that will read the answers."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step it is in; open requests end as cancelled."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """The request's events, the last of them `Finished`; leaving early cancels it.

        Raises `RequestRefused`, `EngineFull` or `EngineDead` before the first event.
        """
        inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._inboxes[request.id] = inbox
        finished = False
        try:
            await self.ask(lambda: self.engine.add(request))
            while not finished:
                event = await inbox.get()
                finished = isinstance(event, Finished)
                yield event
        finally:
            del self._inboxes[request.id]
            if not finished and not self._ended:
                self._post(_Job(lambda: self._tell(self.engine.cancel(request.id))))

    async def ask(self, job: Callable[[], T]) -> T:
        """Run `job` in the engine's thread between two steps."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(value: T | None, error: Exception | None) -> None:
            loop.call_soon_threadsafe(_settle, answer, value, error)

        def run() -> None:
            try:
                value = job()
            except Exception as error:
                settle(None, error)
            else:
                settle(value, None)

        self._post(_Job(run, lambda error: settle(None, error)))
        return await answer

    def _post(self, job: _Job) -> None:
        with self._wake:
            if not self._ended:
                self._jobs.append(job)
                self.engine.hurry()
                self._wake.notify()
                return
        job.refuse(EngineDead("the engine has stopped"))

    def _run(self) -> None:
        try:
            while self._wait():
                while self._jobs:
                    self._jobs.popleft().run()
                if self.engine.busy:
                    self._tell(self.engine.step())
                    self._audit_if_idle(time.monotonic())
        except BaseException as error:  # whatever it was, the clients must hear of it
            _log.exception("the engine failed")
            self.dead = error
        self._end_all()

    def _audit_if_idle(self, now_s: float) -> None:
        """Audit the blocks of an idle engine. A leak costs memory but no answers, so it is logged and the engine goes
        on.
        """
        if self.engine.busy or now_s - self._audited_s < _AUDIT_EVERY_S:
            return
        self._audited_s = now_s
        self.audits += 1
        _return_memory()
        try:
            self.engine.audit()
        except AssertionError:
            self.audits_failed += 1
            _log.exception("the blocks of an idle engine are not all accounted for")

    def _wait(self) -> bool:
        with self._wake:
            while not (self._jobs or self.engine.busy or self._stopping):
                self._wake.wait()
        return not self._stopping

    def _tell(self, events: list[Event]) -> None:
        assert self._loop is not None
        if events:
            self._loop.call_soon_threadsafe(self._deliver, events)

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            inbox = self._inboxes.get(event.request_id)
            if inbox is not None:
                inbox.put_nowait(event)

    def _end_all(self) -> None:
        """End every open request, refuse every job that was not begun, and accept no more."""
        assert self._loop is not None
        ending: Ending = "error" if self.dead else "cancelled"
        message = f"the engine has stopped: {self.dead}" if self.dead else "the engine is stopping"

        def end() -> None:
            for request_id, inbox in self._inboxes.items():
                inbox.put_nowait(Finished(request_id, ending, "", message))

        with self._wake:
            self._ended = True
            left, self._jobs = self._jobs, deque()
        try:
            for job in left:
                job.refuse(EngineDead(message))
            self._loop.call_soon_threadsafe(end)
        except RuntimeError:  # the loop is closed: nobody is left to hear
            pass


def _return_memory() -> None:
    """Return unused heap to the system: tensors of varying sizes fragment the C library's heap."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _nobody_waits(error: Exception) -> None:
    """A job without a caller is refused in silence."""


@dataclass(frozen=True, slots=True)
class _Job:
    """Work for the engine's thread, and how to tell its caller that it will never run."""

    run: Callable[[], None]
    refuse: Callable[[Exception], None] = _nobody_waits


def _settle(answer: asyncio.Future[T], value: T | None, error: Exception | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(value)  # type: ignore[arg-type]
