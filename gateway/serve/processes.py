"""Child processes that are kept alive, and replaced without failing a request.

A child reports that it is ready by a byte on a pipe, which closes when the child ends, so nobody polls and nobody waits
for a dead process. A replacement starts beside the process that serves; only when it is ready is the old one told to
finish.
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
"""After a child has run this long, the delay of its next restart is the shortest again."""
ORPHANED_EVERY_S = 0.5
REAP_EVERY_S = 1.0
RETIRE = signal.SIGUSR1
"""Tells a child to finish its requests within the request timeout; SIGTERM, within the drain timeout."""


@dataclass(frozen=True, slots=True)
class Child:
    """What to run. A child with sockets gets `--fd` for each."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    sockets: tuple[socket.socket, ...] = ()
    reports_ready: bool = False
    """It gets `--ready-fd`, the pipe to report on; any other child counts as ready at once."""
    numbered: bool = False
    """It gets `--index`, a number that no other run of this supervisor has."""


async def orphaned(parent: int) -> None:
    """Wait until the supervisor that started this process has ended without stopping it. The process must then end by
    itself, since a new supervisor needs its sockets and locks. Without a supervisor (`parent` 0) this waits forever.
    """
    while True:
        await asyncio.sleep(ORPHANED_EVERY_S)
        if parent and os.getppid() != parent:
            log.error("the supervisor is gone; this process ends")
            return


async def reap_orphans() -> None:
    """Reap ended processes that nobody else waits for, until cancelled. Process 1 of a container inherits every process
    that outlives its parent; unreaped, they would use up all process ids.
    """
    while True:
        await asyncio.sleep(REAP_EVERY_S)
        while not Run.starting and _reap_orphan():
            pass


def _reap_orphan() -> bool:
    """Reap one ended process that is no child of ours, and return whether there was one. asyncio reaps ours itself."""
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
    """Ids of our processes that asyncio has not reaped yet."""
    starting: ClassVar[int] = 0
    """Number of our processes that are being started and are not in `alive` yet."""

    def __init__(self, process: asyncio.subprocess.Process, number: int, ready_fd: int | None) -> None:
        self.process = process
        self.number = number
        self.began_s = time.monotonic()
        self.alive.add(process.pid)
        self.ended = asyncio.create_task(process.wait())
        self.ended.add_done_callback(lambda _: self.alive.discard(process.pid))
        self.was_ready = False
        self._ready_fd = ready_fd

    @classmethod
    async def start(cls, child: Child, number: int) -> Run:
        fds = [sock.fileno() for sock in child.sockets if sock.fileno() >= 0]
        command = [*child.command, *(word for fd in fds for word in ("--fd", str(fd)))]
        ready_fd, child_fd = os.pipe() if child.reports_ready else (None, None)
        if child.numbered:
            command += ["--index", str(number)]
        if child_fd is not None:
            command += ["--ready-fd", str(child_fd)]
            fds.append(child_fd)
        cls.starting += 1
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={**os.environ, **child.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sys.stderr,
                pass_fds=fds,
                process_group=0,  # Ctrl-C reaches only the supervisor, which stops its children in order
            )
            return cls(process, number, ready_fd)
        except BaseException:
            if ready_fd is not None:
                os.close(ready_fd)
            raise
        finally:
            cls.starting -= 1
            if child_fd is not None:
                os.close(child_fd)

    async def ready(self) -> bool:
        """Wait until the process reports that it is ready. False where it ended before that."""
        ready_fd, self._ready_fd = self._ready_fd, None
        if ready_fd is None:
            self.was_ready = True
            return True
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(ready_fd, _resolve, readable)
        try:
            await readable
            self.was_ready = bool(os.read(ready_fd, 1))
            return self.was_ready
        finally:
            loop.remove_reader(ready_fd)
            os.close(ready_fd)

    async def stop(self, signum: int = signal.SIGTERM) -> None:
        """Send the signal and wait until the process has ended."""
        if self.process.returncode is None and _is_running(self.process.pid):
            os.kill(self.process.pid, signum)
        await asyncio.shield(self.ended)


def _is_running(pid: int) -> bool:
    """Whether the process runs, without reaping it: `Popen.send_signal` would take an exit status away from asyncio."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Keeper:
    """Keeps one child alive. When `keep` is cancelled, it lets the child drain."""

    def __init__(
        self, child: Child, number: Callable[[], int] | None = None, gone: Callable[[int], None] = lambda _: None
    ) -> None:
        self.child = child
        self.is_ready = asyncio.Event()
        """Set once a run that `keep` started has been ready."""
        self.restarts = 0
        self.stumbled: Callable[[], None] | None = None
        """Called when the child ended before it was ready. It must close the child's sockets, so that no client waits
        in a queue that nobody serves; the next run listens for itself."""
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
                except OSError as fault:  # out of memory, processes or files
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
        """Start a run of this child beside the old one, which retires once the new one is ready. False, and the old run
        stays, where the new one is not ready within `within_s` seconds.
        """
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
        except asyncio.CancelledError:  # the gateway ends in the middle of a reload
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
        """Let the child finish its requests (see `RETIRE`), and start nothing in its place."""
        self._retired = True
        old, self._run = self._run, None
        self._replaced.set()
        if old is not None:
            self._leave(old, RETIRE)

    async def left(self) -> None:
        """Wait until the runs that are being stopped now have ended."""
        if self._leaving:
            await asyncio.wait(set(self._leaving))

    async def restart(self, child: Child) -> None:
        """Stop the old run while a new one starts, and wait until the old one has ended."""
        old, self.child = self._run, child
        if old is not None:
            self._run = None
            self._replaced.set()
            self._leave(old, signal.SIGTERM)
            await self.left()

    async def _begin(self) -> Run:
        """Start a run. Where the child was replaced meanwhile, the run of its replacement is returned instead."""
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
        """Wait until the run has ended or was replaced. True where it ended by itself."""
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
