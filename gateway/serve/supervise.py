"""`headgate serve`: starts the workers, the control process and the managed inference servers, and restarts any that
ends.

The supervisor serves nothing and has no state but the listening sockets: one for each worker, so that the kernel
spreads connections over them, and the connections in a socket's queue outlive its worker. On SIGHUP it reads the
configuration again and replaces the workers one after the other; no request fails, and no stream is cut. A run folder
that somebody deletes is created anew, and every process that used it is replaced.
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
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.config.check import unshared
from gateway.config.load import check
from gateway.config.settings import read_settings
from gateway.config.types import Config
from gateway.errors import ConfigError
from gateway.providers.managed import Managed, is_ready, lost_models, managed, wait_ready
from gateway.serve.listen import admin_host, listen, raise_file_limit
from gateway.serve.processes import Child, Keeper, reap_orphans
from gateway.serve.run_folder import RunFolder
from gateway.serve.worker_counters import REFUSED, forget, retire

log = logging.getLogger("headgate.serve")

READY_TIMEOUT_S = 120.0
LOAD_TIMEOUT_S = 600.0
"""Time in which a managed server that a reload adds must have loaded its models."""
ONE_CORE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of workers: a decision's matrix products are too small for several threads, and idle ones would spin."""
FOLDER_EVERY_S = 1.0
FIXED = ("host", "port", "admin_host", "admin_port")
"""Settings of the server that only a restart changes."""


async def serve(config: Config, path: str | None, on_ready: Callable[[], None], *, workers: int | None) -> None:
    """Serve until SIGINT or SIGTERM. `workers` is the command line's number of workers, which overrides the file's,
    also at a reload; None where it states none. Raises ConfigError where a port or the run folder is in use.
    """
    raise_file_limit()
    supervisor = Supervisor(config, path, workers)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    loop.add_signal_handler(signal.SIGHUP, supervisor.reload_soon)
    steps = supervisor.announce(on_ready), supervisor.keep_folder(), reap_orphans()
    chores = [asyncio.create_task(one) for one in steps]
    supervisor.start()
    try:
        await stop.wait()
    finally:
        tell_system("STOPPING=1")
        for chore in chores:
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)
        await supervisor.stop()


class Supervisor:
    """All processes of one gateway on one machine."""

    def __init__(self, config: Config, path: str | None, workers: int | None) -> None:
        self.config = config
        self._path = path
        self._stated = workers
        self._numbers = itertools.count()
        self._port = config.server.port
        self._reloading = asyncio.Lock()
        self._reloads: set[asyncio.Task[None]] = set()
        self._tasks: dict[Keeper, asyncio.Task[None]] = {}
        """The task of every child, including those that only finish their requests."""
        self._upstreams = {one.socket: self._keeper(_upstream(one)) for one in _managed(config)}
        self._sockets: list[socket.socket] = []
        """One for each worker. When a reload lowers the number of workers, all workers accept from the surplus sockets
        as well, because closing a socket resets the connections in its queue."""
        for _ in range(self._count):
            self._sockets.append(self._listen())
        self._admin_socket = listen(admin_host(config.server), config.server.admin_port, "server.admin_port")
        self._folder = RunFolder(Path(config.server.run_dir), path)
        forget(self._folder.path)
        (self._folder.path / REFUSED).unlink(missing_ok=True)
        self._control = self._keeper(self._control_child())
        self._workers: list[Keeper] = []
        for _ in range(self._count):
            self._add_worker()

    def start(self) -> None:
        for keeper in (*self._upstreams.values(), self._control, *self._workers):
            self._keep(keeper)

    async def stop(self) -> None:
        """Stop the workers first, while managed servers still answer and the control process still ships the journal,
        then the control process, then the managed servers.
        """
        for task in self._reloads:
            task.cancel()
        await asyncio.gather(*self._reloads, return_exceptions=True)
        for sock in self._sockets:
            sock.close()
        others = (self._control, *self._upstreams.values())
        await self._finish([keeper for keeper in self._tasks if keeper not in others])
        self._admin_socket.close()
        await self._finish([self._control])
        await self._finish([*self._upstreams.values()])

    async def announce(self, on_ready: Callable[[], None]) -> None:
        """Call `on_ready` once a worker accepts connections and every managed server answers or has timed out; not
        before a worker does.
        """
        waiting: set[asyncio.Task[Any]] = {asyncio.create_task(keeper.is_ready.wait()) for keeper in self._workers}
        done: set[asyncio.Task[Any]] = set()
        while not done:
            done, waiting = await asyncio.wait(
                waiting, timeout=READY_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                log.error("no worker answers after %.0f s; see their messages above", READY_TIMEOUT_S)
        for task in waiting:
            task.cancel()
        for one in _managed(self.config):
            if not await wait_ready(one.socket, timeout_s=READY_TIMEOUT_S):
                log.error("provider %s is not ready after %.0f s", one.provider, READY_TIMEOUT_S)
        on_ready()
        tell_system("READY=1")

    # Reloading

    def reload_soon(self) -> None:
        """Reload in the background, as SIGHUP asks for."""
        self._soon(self.reload())

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def reload(self) -> None:
        """Put the configuration file as it is now into force in all processes. A faulty one is refused and changes
        nothing.
        """
        async with self._reloading:
            config, problems = check(self._path, os.environ)
            if config is None:
                self._refuse("; ".join(problems))
                return
            if config.server.run_dir != self.config.server.run_dir:  # the old folder's spools would never be shipped
                self._refuse("server.run_dir: only a restart can change it")
                return
            try:
                problem = unshared_by(self._stated or config.server.workers, config)
            except (OSError, ConfigError) as fault:
                problem = str(fault)
            if problem:
                self._refuse(f"{'--workers' if self._stated else 'server.workers'}: {problem}")
                return
            _warn_of_fixed(self.config, config)
            tell_system(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            if await self._apply(config):
                (self._folder.path / REFUSED).unlink(missing_ok=True)
                log.warning("configuration reloaded; %d worker(s)", len(self._workers))
            tell_system("READY=1")

    async def _apply(self, config: Config) -> bool:
        """Start new managed servers, then replace the workers, then the control process, and then stop managed servers
        that are no longer used. False, and nothing changes, where one of the new processes doesn't start.
        """
        added = [one for one in _managed(config) if one.socket not in self._upstreams]
        if not await self._start_upstreams(added) or not await self._put_in_force(config):
            await self._end_upstreams([one.socket for one in added])
            return False
        self._add_or_end_workers()
        used = {one.socket for one in _managed(config)}
        self._soon(self._end_unused([one for one in self._upstreams if one not in used]))
        await self._control.restart(self._control_child())
        return True

    async def _start_upstreams(self, added: list[Managed]) -> bool:
        """Start managed servers and wait until they answer. False where one doesn't, or can't load its models."""
        for one in added:
            keeper = self._upstreams[one.socket] = self._keeper(_upstream(one))
            self._keep(keeper)
        deadline_s = time.monotonic() + LOAD_TIMEOUT_S
        for one in added:
            while not await is_ready(one.socket):
                if self._upstreams[one.socket].restarts or time.monotonic() > deadline_s:
                    self._refuse(f"provider {one.provider} does not start; see its messages above")
                    return False
                await asyncio.sleep(0.05)
            if lost := await lost_models(one.socket):
                self._refuse(f"provider {one.provider} can't load {', '.join(lost)}; see its messages above")
                return False
        return True

    def _refuse(self, why: str) -> None:
        """Log that the reload is refused, and leave a file that tells the control process until a reload succeeds."""
        log.error("configuration not reloaded, the old one stays: %s", why)
        with suppress(OSError):
            (self._folder.path / REFUSED).touch(mode=0o600)

    async def _end_unused(self, sockets: list[Path]) -> None:
        """Stop these managed servers once the workers that may call them have ended, unless a later reload uses them
        again.
        """
        await asyncio.gather(*(keeper.left() for keeper in self._tasks))
        async with self._reloading:
            used = {one.socket for one in _managed(self.config)}
            await self._end_upstreams([one for one in sockets if one not in used])

    async def _end_upstreams(self, sockets: list[Path]) -> None:
        await self._finish([self._upstreams.pop(one) for one in sockets])
        for one in sockets:
            one.unlink(missing_ok=True)

    async def _put_in_force(self, config: Config) -> bool:
        """Replace every worker, one after the other, by one with this configuration. False where one doesn't start:
        then all workers, and those that are started later, have the old configuration.
        """
        try:
            self._folder.begin_trial()
        except OSError as fault:
            self._refuse(str(fault))
            return False
        old, self.config = self.config, config
        tried = self._workers[: self._count]
        replaced = await self._replace(tried)
        self._folder.end_trial(accepted=replaced == len(tried))
        if replaced < len(tried):
            self._refuse(f"worker {replaced} can't start with the new configuration; see its messages above")
            self.config = old
            await self._replace(tried[:replaced])
        for slot, keeper in enumerate(tried):
            keeper.child = replace(keeper.child, command=self._worker_child(slot).command)
        self._folder.discard_trial()
        return replaced == len(tried)

    async def _replace(self, keepers: list[Keeper]) -> int:
        """Replace workers one after the other until one doesn't start, and return how many were replaced."""
        for slot, keeper in enumerate(keepers):
            self._open(slot)
            if not await keeper.replace(self._worker_child(slot), READY_TIMEOUT_S):
                return slot
        return len(keepers)

    def _add_or_end_workers(self) -> None:
        while len(self._workers) > self._count:
            self._workers.pop().retire()
        while len(self._workers) < self._count:
            self._keep(self._add_worker())

    def _add_worker(self) -> Keeper:
        slot = len(self._workers)
        self._open(slot)
        keeper = self._keeper(self._worker_child(slot))
        if self.config.server.port:
            keeper.stumbled = lambda: self._close(slot)
        self._workers.append(keeper)
        return keeper

    # The run folder

    async def keep_folder(self) -> None:
        """Create the run folder anew whenever it was deleted, until cancelled."""
        last_fault = ""
        while True:
            await asyncio.sleep(FOLDER_EVERY_S)
            async with self._reloading:
                if self._folder.is_whole:
                    continue
                try:
                    self._folder.lay_anew()
                except (OSError, ConfigError) as fault:
                    if str(fault) != last_fault:
                        log.error("server.run_dir is gone and can't be laid anew; no worker can be started: %s", fault)
                    last_fault = str(fault)
                    continue
                last_fault = ""
                log.error("server.run_dir %s was cleared away while it is in use: it is laid anew, and all processes "
                          "are replaced. Lost are files of clients, and unshipped decisions of workers that had ended. "
                          "Exclude this folder from any clean-up", self._folder.path)  # fmt: skip
                await self._begin_again()

    async def _begin_again(self) -> None:
        """Replace the managed servers whose sockets are gone, the workers and the control process. Each new process
        starts beside the old one.
        """
        missing = [one for one in _managed(self.config) if not one.socket.exists()]
        old = [self._upstreams[one.socket] for one in missing if one.socket in self._upstreams]
        await self._start_upstreams(missing)
        await self._replace(self._workers[: self._count])
        await self._control.restart(self._control_child())
        await self._finish(old)

    # Children

    @property
    def _count(self) -> int:
        return self._stated or self.config.server.workers

    def _open(self, slot: int) -> None:
        """Open the socket of this worker if it isn't open."""
        if slot == len(self._sockets):
            self._sockets.append(self._listen())
        elif self._sockets[slot].fileno() < 0:
            self._sockets[slot] = self._listen()

    def _close(self, slot: int) -> None:
        """Close the socket of a worker that doesn't start, and the surplus sockets, so that no client waits there."""
        for sock in (self._sockets[slot], *self._sockets[self._count :]):
            sock.close()

    def _listen(self) -> socket.socket:
        sock = listen(self.config.server.host, self._port, "server.port", is_first=not self._sockets)
        self._port = sock.getsockname()[1]
        return sock

    def _keeper(self, child: Child) -> Keeper:
        return Keeper(child, lambda: next(self._numbers), lambda number: retire(self._folder.path, number))

    def _worker_child(self, slot: int) -> Child:
        return Child(
            f"worker {slot}",
            [sys.executable, "-m", "gateway.serve.worker", *self._where()],
            ONE_CORE,
            sockets=(self._sockets[slot], *self._sockets[self._count :]), reports_ready=True, numbered=True,
        )  # fmt: skip

    def _control_child(self) -> Child:
        command = [sys.executable, "-m", "gateway.serve.control", *self._where()]
        return Child("control", command, ONE_CORE, sockets=(self._admin_socket,))

    def _where(self) -> list[str]:
        path = ("--config", str(self._folder.config_copy)) if self._path else ()
        return [*path, "--workers", str(self._count), "--parent", str(os.getpid())]

    def _keep(self, keeper: Keeper) -> None:
        task = self._tasks[keeper] = asyncio.create_task(keeper.keep())
        task.add_done_callback(lambda _: self._tasks.pop(keeper, None))

    async def _finish(self, keepers: list[Keeper]) -> None:
        """Stop these children and wait until they have ended."""
        tasks = [self._tasks.pop(keeper) for keeper in keepers if keeper in self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def unshared_by(workers: int, config: Config) -> str:
    """Why this number of workers can't share the limits and budgets of the configuration and of keys made at run time;
    empty where they can.
    """
    keys = (key for key in read_settings(config.server.run_dir).keys if key.revoked_s is None)
    return unshared(config, keys) if workers > 1 else ""


def _managed(config: Config) -> list[Managed]:
    return [one for provider in config.providers if (one := managed(provider, config.server)) is not None]


def _upstream(one: Managed) -> Child:
    return Child(f"provider {one.provider}", [*one.command, "--parent", str(os.getpid())], one.environment)


def _warn_of_fixed(old: Config, new: Config) -> None:
    changed = [f"server.{name}" for name in FIXED if getattr(old.server, name) != getattr(new.server, name)]
    if changed:
        log.warning("a restart is needed for what changed in: %s", ", ".join(changed))


def tell_system(state: str) -> None:
    """Send a state to systemd (sd_notify); does nothing where NOTIFY_SOCKET is not set."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as fault:
            log.warning("systemd can't be notified: %s", fault)
