"""`headgate serve`: starts the workers, the control process and the servers we manage; restarts what dies.

The supervisor serves nothing and holds no state but the listening sockets: one for each worker, so that the kernel
spreads connections over them, and what waits in a socket's queue outlives the worker that was to take it. SIGHUP
reads the configuration again and replaces the workers one after the other; no request fails, no stream is cut. A run
folder that somebody clears away is laid anew, and all that lived in it begins again.
"""

from __future__ import annotations

import asyncio
import fcntl
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

from gateway.config import Config
from gateway.config_load import check, unshared
from gateway.errors import ConfigError
from gateway.listen import admin_host, listen, raise_file_limit
from gateway.processes import Child, Keeper, reap_orphans
from gateway.providers.managed import Managed, is_ready, lost_models, managed, wait_ready
from gateway.settings import read_settings
from gateway.worker_counters import REFUSED, forget, retire

log = logging.getLogger("headgate.serve")

READY_TIMEOUT_S = 120.0
LOAD_TIMEOUT_S = 600.0
"""For a server of ours that a reload adds to load its models."""
ONE_CORE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""For workers: a decision's products are too small to share, and idle threads that spin cost more than they give."""
LOCK = "serve.lock"
FOLDER_EVERY_S = 1.0
FIXED = ("host", "port", "admin_host", "admin_port")
"""Settings of the server that a reload leaves as they are."""


async def serve(config: Config, path: str | None, on_ready: Callable[[], None], *, workers: int | None) -> None:
    """Until SIGINT or SIGTERM. `workers`: the command line's number, which wins over the file's, at a reload too.
    Raises ConfigError where a port is taken.
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
        self._run_dir = Path(config.server.run_dir)
        self._run_dir.mkdir(0o700, parents=True, exist_ok=True)  # cached answers, files of prompts
        self._mode = self._run_dir.stat().st_mode & 0o7777
        self._in_force = self._run_dir / "config.toml"
        self._on_trial = self._run_dir / "config.trial.toml"
        self._file = self._in_force
        """What children go by that start now."""
        self._port = config.server.port
        self._reloading = asyncio.Lock()
        self._reloads: set[asyncio.Task[None]] = set()
        self._tasks: dict[Keeper, asyncio.Task[None]] = {}
        """Of every child, those too that only finish what is under way."""
        self._upstreams = {one.socket: self._keeper(_upstream(one)) for one in _managed(config)}
        self._sockets: list[socket.socket] = []
        """One for each worker. Those that fewer workers leave over are all workers' together: whoever closes a socket
        resets the connections in its queue."""
        for _ in range(self._count):
            self._sockets.append(self._listen())
        self._admin_socket = listen(admin_host(config.server), config.server.admin_port, "server.admin_port")
        self._lock = own(self._run_dir)
        forget(self._run_dir)
        (self._run_dir / REFUSED).unlink(missing_ok=True)
        self._frozen = self._freeze(self._in_force)
        """What is in force, word by word."""
        self._control = self._keeper(self._control_child())
        self._workers: list[Keeper] = []
        for _ in range(self._count):
            self._add_worker()

    def start(self) -> None:
        for keeper in (*self._upstreams.values(), self._control, *self._workers):
            self._keep(keeper)

    async def stop(self) -> None:
        """From behind, in the order of need: workers end while upstreams still answer and control ships."""
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
        """Say so once a worker accepts connections and every managed server answers; never where none does."""
        waiting: set[asyncio.Task[Any]] = {asyncio.create_task(keeper.is_ready.wait()) for keeper in self._workers}
        done: set[asyncio.Task[Any]] = set()
        while not done:
            done, waiting = await asyncio.wait(
                waiting, timeout=READY_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                log.error("no worker answers after %.0f s; what they said is above", READY_TIMEOUT_S)
        for task in waiting:
            task.cancel()
        for one in _managed(self.config):
            if not await wait_ready(one.socket, timeout_s=READY_TIMEOUT_S):
                log.error("provider %s is not ready after %.0f s", one.provider, READY_TIMEOUT_S)
        on_ready()
        tell_system("READY=1")

    # Reloading

    def reload_soon(self) -> None:
        """SIGHUP."""
        self._soon(self.reload())

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def reload(self) -> None:
        """The configuration as it is now, in every worker and in control; a faulty one changes nothing."""
        async with self._reloading:
            config, problems = check(self._path, os.environ)
            if config is None:
                self._refuse("; ".join(problems))
                return
            if config.server.run_dir != self.config.server.run_dir:  # what is spooled there would never be shipped
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
            if await self._exchange(config):
                (self._run_dir / REFUSED).unlink(missing_ok=True)
                log.warning("configuration reloaded; %d worker(s)", len(self._workers))
            tell_system("READY=1")

    async def _exchange(self, config: Config) -> bool:
        """First servers that new workers will ask, then workers, then control; what only the old ones asked ends."""
        added = [one for one in _managed(config) if one.socket not in self._upstreams]
        if not await self._start_upstreams(added) or not await self._put_in_force(config):
            await self._end_upstreams([one.socket for one in added])
            return False
        self._add_or_end_workers()
        asked = {one.socket for one in _managed(config)}
        self._soon(self._end_unasked([one for one in self._upstreams if one not in asked]))
        await self._control.restart(self._control_child())
        return True

    async def _start_upstreams(self, added: list[Managed]) -> bool:
        """False: one of them does not answer."""
        for one in added:
            keeper = self._upstreams[one.socket] = self._keeper(_upstream(one))
            self._keep(keeper)
        deadline_s = time.monotonic() + LOAD_TIMEOUT_S
        for one in added:
            while not await is_ready(one.socket):
                if self._upstreams[one.socket].restarts or time.monotonic() > deadline_s:
                    self._refuse(f"provider {one.provider} does not start; what it said is above")
                    return False
                await asyncio.sleep(0.05)
            if lost := await lost_models(one.socket):
                self._refuse(f"provider {one.provider} can't load {', '.join(lost)}; what it said is above")
                return False
        return True

    def _refuse(self, why: str) -> None:
        """Told in the log, and to the control process by a file that stays until a reload is done."""
        log.error("configuration not reloaded, the old one stays: %s", why)
        with suppress(OSError):
            (self._run_dir / REFUSED).touch(mode=0o600)

    async def _end_unasked(self, sockets: list[Path]) -> None:
        """These servers, once the workers that may ask them are gone, if no reload has named them again."""
        await asyncio.gather(*(keeper.left() for keeper in self._tasks))
        async with self._reloading:
            asked = {one.socket for one in _managed(self.config)}
            await self._end_upstreams([one for one in sockets if one not in asked])

    async def _end_upstreams(self, sockets: list[Path]) -> None:
        await self._finish([self._upstreams.pop(one) for one in sockets])
        for one in sockets:
            one.unlink(missing_ok=True)

    async def _put_in_force(self, config: Config) -> bool:
        """In every worker, one after the other. False: in none, and what starts from now on goes by the old one."""
        try:
            frozen = self._freeze(self._on_trial)
        except OSError as fault:
            self._refuse(str(fault))
            return False
        old, self.config, self._file = self.config, config, self._on_trial
        tried = self._workers[: self._count]
        replaced = await self._replace(tried)
        self._file = self._in_force
        if replaced < len(tried):
            self._refuse(f"worker {replaced} can't start with the new configuration; what it said is above")
            self.config = old
            await self._replace(tried[:replaced])
        elif self._path:
            self._frozen = frozen
            with suppress(OSError):  # the folder was cleared away meanwhile: it is laid anew with this
                self._on_trial.replace(self._in_force)
        for slot, keeper in enumerate(tried):
            keeper.child = replace(keeper.child, command=self._worker_child(slot).command)
        self._on_trial.unlink(missing_ok=True)
        return replaced == len(tried)

    async def _replace(self, keepers: list[Keeper]) -> int:
        """These by new ones of the configuration in force, until one doesn't start; how many were."""
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
        """Until cancelled: sockets, locks and what children start by are there, or are made again."""
        said = ""
        while True:
            await asyncio.sleep(FOLDER_EVERY_S)
            async with self._reloading:
                if self._has_folder():
                    continue
                try:
                    self._lay_folder()
                except (OSError, ConfigError) as fault:
                    if str(fault) != said:
                        log.error("server.run_dir is gone and can't be laid anew; no worker can be started: %s", fault)
                    said = str(fault)
                    continue
                said = ""
                log.error("server.run_dir %s was cleared away while it is in use: it is laid anew, and all processes "
                          "are replaced. Lost are files of clients, and unshipped decisions of workers that had ended. "
                          "Let nothing clean there", self._run_dir)  # fmt: skip
                await self._begin_again()

    def _has_folder(self) -> bool:
        try:
            ours = os.path.samestat(os.fstat(self._lock), (self._run_dir / LOCK).stat())
            return ours and (not self._path or self._in_force.exists())
        except OSError:
            return False

    def _lay_folder(self) -> None:
        """Raises OSError where it can't be made, ConfigError where another gateway has it by now."""
        self._run_dir.mkdir(0o700, parents=True, exist_ok=True)
        self._run_dir.chmod(self._mode)  # a worker may have been faster
        before, self._lock = self._lock, own(self._run_dir)
        os.close(before)
        if self._path:
            _write_private(self._in_force, self._frozen)

    async def _begin_again(self) -> None:
        """Servers of ours whose sockets are gone, workers, control: each new one beside the one that was."""
        lost = [one for one in _managed(self.config) if not one.socket.exists()]
        before = [self._upstreams[one.socket] for one in lost if one.socket in self._upstreams]
        await self._start_upstreams(lost)
        await self._replace(self._workers[: self._count])
        await self._control.restart(self._control_child())
        await self._finish(before)

    # Children

    @property
    def _count(self) -> int:
        return self._stated or self.config.server.workers

    def _open(self, slot: int) -> None:
        """The socket of this worker, where there is none."""
        if slot == len(self._sockets):
            self._sockets.append(self._listen())
        elif self._sockets[slot].fileno() < 0:
            self._sockets[slot] = self._listen()

    def _close(self, slot: int) -> None:
        """What this worker would have answered and does not."""
        for sock in (self._sockets[slot], *self._sockets[self._count :]):
            sock.close()

    def _listen(self) -> socket.socket:
        sock = listen(self.config.server.host, self._port, "server.port", is_first=not self._sockets)
        self._port = sock.getsockname()[1]
        return sock

    def _keeper(self, child: Child) -> Keeper:
        return Keeper(child, lambda: next(self._numbers), lambda number: retire(self._run_dir, number))

    def _worker_child(self, slot: int) -> Child:
        return Child(
            f"worker {slot}",
            [sys.executable, "-m", "gateway.worker", *self._where()],
            ONE_CORE,
            sockets=(self._sockets[slot], *self._sockets[self._count :]), reports_ready=True, numbered=True,
        )  # fmt: skip

    def _control_child(self) -> Child:
        command = [sys.executable, "-m", "gateway.control", *self._where()]
        return Child("control", command, ONE_CORE, sockets=(self._admin_socket,))

    def _where(self) -> list[str]:
        path = ("--config", str(self._file)) if self._path else ()
        return [*path, "--workers", str(self._count), "--parent", str(os.getpid())]

    def _freeze(self, copy: Path) -> bytes:
        """A copy of the file: a child that is started again goes by it, whatever the file says meanwhile."""
        content = Path(self._path).read_bytes() if self._path else b""
        if self._path:
            _write_private(copy, content)
        return content

    def _keep(self, keeper: Keeper) -> None:
        task = self._tasks[keeper] = asyncio.create_task(keeper.keep())
        task.add_done_callback(lambda _: self._tasks.pop(keeper, None))

    async def _finish(self, keepers: list[Keeper]) -> None:
        """Stop these and wait until they are gone."""
        tasks = [self._tasks.pop(keeper) for keeper in keepers if keeper in self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def unshared_by(workers: int, config: Config) -> str:
    """Why so many workers can't serve this configuration and the keys made at run time; empty: they can."""
    made = (key for key in read_settings(config.server.run_dir).keys if key.revoked_s is None)
    return unshared(config, made) if workers > 1 else ""


def _write_private(path: Path, text: bytes) -> None:
    draft = path.with_suffix(".new")
    draft.touch(mode=0o600)
    draft.write_bytes(text)
    draft.replace(path)


def own(run_dir: Path) -> int:
    """A lock on the folder, as long as this process lives. Raises ConfigError where another gateway has it."""
    lock = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        why = f"server.run_dir: another gateway runs in {run_dir}: each needs a folder of its own"
        raise ConfigError([why]) from None
    return lock


def _managed(config: Config) -> list[Managed]:
    return [one for provider in config.providers if (one := managed(provider, config.server)) is not None]


def _upstream(one: Managed) -> Child:
    return Child(f"provider {one.provider}", [*one.command, "--parent", str(os.getpid())], one.environment)


def _warn_of_fixed(old: Config, new: Config) -> None:
    changed = [f"server.{name}" for name in FIXED if getattr(old.server, name) != getattr(new.server, name)]
    if changed:
        log.warning("a restart is needed for what changed in: %s", ", ".join(changed))


def tell_system(state: str) -> None:
    """systemd, where it asked to be told (sd_notify)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as fault:
            log.warning("systemd can't be told: %s", fault)
