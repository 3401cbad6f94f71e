"""Child processes that are kept alive, and replaced without anybody noticing.

A child says that it is ready by a byte on a pipe that dies with it, so nobody polls and nobody waits for a corpse.
A replacement starts beside the one that serves; only when it is ready the old one is told to finish.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

log = logging.getLogger("headgate.serve")

FIRST_RESTART_S = 0.2
LONGEST_RESTART_S = 10.0
STEADY_S = 30.0
"""A child that ran this long gets its next restart at once."""
ORPHANED_EVERY_S = 0.5
REAP_EVERY_S = 1.0
RETIRE = signal.SIGUSR1
"""Finish what is under way, however long it takes; SIGTERM: within the drain timeout."""


@dataclass(frozen=True, slots=True)
class Child:
    """What to run. A child that `tells` gets `--ready-fd`; one with sockets gets `--fd` for each."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    sockets: tuple[socket.socket, ...] = ()
    tells: bool = False
    numbered: bool = False
    """Gets `--index`: a number that no other run of this supervisor has."""


async def orphaned(parent: int) -> None:
    """When the supervisor that started this process is gone without a word: nobody else would ever end us, and what we
    hold is what its successor wants. 0: nobody started us.
    """
    while True:
        await asyncio.sleep(ORPHANED_EVERY_S)
        if parent and os.getppid() != parent:
            log.error("the supervisor is gone; this process ends")
            return


async def reap_orphans() -> None:
    """Until cancelled: let those go that have ended, and that nobody else waits for. Process 1 of a container inherits
    whatever outlived its parent, and would be left with no number for a new process.
    """
    while True:
        await asyncio.sleep(REAP_EVERY_S)
        while not Run.starting and _reap_orphan():
            pass


def _reap_orphan() -> bool:
    """One that has ended and isn't ours, if there is one. The status of ours is asyncio's to take."""
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None or ended.si_pid in Run.alive:
            return False
        os.waitpid(ended.si_pid, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


class Run:
    """One process, from its start to its end."""

    alive: ClassVar[set[int]] = set()
    """All processes of ours whose end asyncio has not been told yet."""
    starting: ClassVar[int] = 0
    """Processes of ours that are not in `alive` yet."""

    def __init__(self, process: asyncio.subprocess.Process, number: int, told: int | None) -> None:
        self.process = process
        self.number = number
        self.began_s = time.monotonic()
        self.alive.add(process.pid)
        self.ended = asyncio.create_task(process.wait())
        self.ended.add_done_callback(lambda _: self.alive.discard(process.pid))
        self.was_ready = False
        self._told = told

    @classmethod
    async def start(cls, child: Child, number: int) -> Run:
        fds = [sock.fileno() for sock in child.sockets if sock.fileno() >= 0]
        command = [*child.command, *(word for fd in fds for word in ("--fd", str(fd)))]
        told, tell = os.pipe() if child.tells else (None, None)
        if child.numbered:
            command += ["--index", str(number)]
        if tell is not None:
            command += ["--ready-fd", str(tell)]
            fds.append(tell)
        cls.starting += 1
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={**os.environ, **child.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sys.stderr,
                pass_fds=fds,
                process_group=0,  # Ctrl-C is for the supervisor, which ends its children in good order
            )
            return cls(process, number, told)
        except BaseException:
            if told is not None:
                os.close(told)
            raise
        finally:
            cls.starting -= 1
            if tell is not None:
                os.close(tell)

    async def ready(self) -> bool:
        """When it says so; False: it ended before. One that doesn't tell is ready at once."""
        told, self._told = self._told, None
        if told is None:
            self.was_ready = True
            return True
        loop = asyncio.get_running_loop()
        spoke: asyncio.Future[None] = loop.create_future()
        loop.add_reader(told, _tell, spoke)
        try:
            await spoke
            self.was_ready = bool(os.read(told, 1))
            return self.was_ready
        finally:
            loop.remove_reader(told)
            os.close(told)

    async def stop(self, signum: int = signal.SIGTERM) -> None:
        """Ask it to end and wait until it has."""
        if self.process.returncode is None and _is_running(self.process.pid):
            os.kill(self.process.pid, signum)
        await asyncio.shield(self.ended)


def _is_running(pid: int) -> bool:
    """Looked at only: `Popen.send_signal` would take the status of one that has ended from asyncio."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def _tell(spoke: asyncio.Future[None]) -> None:
    if not spoke.done():
        spoke.set_result(None)


class Keeper:
    """Keeps one child alive until cancelled; then lets it drain."""

    def __init__(
        self, child: Child, number: Callable[[], int] | None = None, gone: Callable[[int], None] = lambda _: None
    ) -> None:
        self.child = child
        self.is_ready = asyncio.Event()
        """Of its first run."""
        self.restarts = 0
        self.stumbled: Callable[[], None] | None = None
        """It ended before it was ready: whoever holds its sockets closes them, and it listens for itself when it can,
        so that nobody waits in a queue that nobody serves."""
        self._number = number or itertools.count().__next__
        self._gone = gone
        self._run: Run | None = None
        self._replaced = asyncio.Event()
        self._retired = False
        self._leaving: set[asyncio.Task[None]] = set()

    async def keep(self) -> None:
        delay_s = FIRST_RESTART_S
        try:
            while not self._retired:
                try:
                    run = self._run or await self._begin()
                except OSError as fault:  # no memory, process or file left for it just now
                    log.error("%s can't be started: %s", self.child.name, fault)
                    delay_s = min(delay_s * 2, LONGEST_RESTART_S)
                    await asyncio.sleep(delay_s)
                    continue
                self._run = run
                if await self._ended_or_replaced(run):
                    ran_s = time.monotonic() - run.began_s
                    delay_s = FIRST_RESTART_S if ran_s > STEADY_S else min(delay_s * 2, LONGEST_RESTART_S)
                    status = run.process.returncode
                    log.error("%s ended with status %s after %.0f s; starting it again", self.child.name, status, ran_s)
                    self._run = None
                    self._gone(run.number)
                    if not run.was_ready and self.child.sockets and self.stumbled is not None:
                        self.child = replace(self.child, sockets=())
                        self.stumbled()
                    self.restarts += 1
                    await asyncio.sleep(delay_s)
            await self.left()
        finally:
            await self._stop()

    async def replace(self, child: Child, within_s: float) -> bool:
        """A new run of this child beside the old one, which retires once the new one is ready; False: it stays."""
        try:
            fresh = await Run.start(child, self._number())
        except OSError as fault:
            log.error("%s can't be started: %s", child.name, fault)
            return False
        try:
            async with asyncio.timeout(within_s):
                is_ready = await fresh.ready()
        except TimeoutError:
            is_ready = False
        except asyncio.CancelledError:  # all of it ends, in the middle of a reload
            await fresh.stop(signal.SIGKILL)
            raise
        if not is_ready:
            await fresh.stop(signal.SIGKILL)
            self._gone(fresh.number)
            return False
        old, self._run, self.child = self._run, fresh, child
        self._replaced.set()
        if old is not None:
            self._leave(old, RETIRE)
        return True

    def retire(self) -> None:
        """It finishes what is under way, however long that takes, and nothing comes in its place."""
        self._retired = True
        old, self._run = self._run, None
        self._replaced.set()
        if old is not None:
            self._leave(old, RETIRE)

    async def left(self) -> None:
        """When those that are leaving now are gone."""
        if self._leaving:
            await asyncio.wait(set(self._leaving))

    async def restart(self, child: Child) -> None:
        """A new run, which starts while the old one ends; until that has."""
        old, self.child = self._run, child
        if old is not None:
            self._run = None
            self._replaced.set()
            self._leave(old, signal.SIGTERM)
            await self.left()

    async def _begin(self) -> Run:
        """The run to keep: another one, where this child was replaced while it was being started."""
        child = self.child
        run = await Run.start(child, self._number())
        waiting = asyncio.create_task(self._await_ready(run))
        self._leaving.add(waiting)
        waiting.add_done_callback(self._leaving.discard)
        if self.child is not child:
            self._leave(run, signal.SIGTERM)
            return self._run or await self._begin()
        return run

    async def _await_ready(self, run: Run) -> None:
        if await run.ready():
            self.is_ready.set()

    async def _ended_or_replaced(self, run: Run) -> bool:
        """True: it ended by itself."""
        replaced = asyncio.create_task(self._replaced.wait())
        try:
            await asyncio.wait({run.ended, replaced}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            replaced.cancel()
        was_replaced = self._replaced.is_set()
        self._replaced.clear()
        return not was_replaced

    def _leave(self, run: Run, signum: int) -> None:
        async def leave() -> None:
            try:
                await run.stop(signum)
            except asyncio.CancelledError:
                await run.stop()
            self._gone(run.number)

        task = asyncio.create_task(leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _stop(self) -> None:
        for task in list(self._leaving):
            task.cancel()
        run, self._run = self._run, None
        if run is not None:
            await run.stop()
            self._gone(run.number)
        await asyncio.gather(*self._leaving, return_exceptions=True)
