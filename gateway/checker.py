"""Runs an operator's check on an answer, in a process with limited time and memory, an empty environment and a
temporary folder. Exit status 0 is a pass and 1 a failure; any other status, a signal or a timeout says nothing about
the answer.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from math import inf

MIB = 1024 * 1024
AT_ONCE = 4
"""Checks of one route that run at the same time in one worker. Others wait, which counts towards their timeout."""


class Checker:
    """One check: a command that reads the answer on standard input. Raises ValueError for an empty command."""

    def __init__(self, command: Sequence[str], *, timeout_s: float = 5.0, memory_mib: int = 512) -> None:
        if not command:
            raise ValueError("a check needs a command")
        self.command = tuple(command)
        self.timeout_s = timeout_s
        self.memory_mib = memory_mib
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def check(self, answer: str, *, within_s: float = inf) -> bool | None:
        """True or False as the command passes or fails the answer; None if it says nothing within the check's timeout
        and `within_s` seconds, the wait for its turn included.
        """
        try:
            async with asyncio.timeout(max(0.0, min(self.timeout_s, within_s))), self._turns:
                return await self._run(answer)
        except TimeoutError:
            return None

    async def _run(self, answer: str) -> bool | None:
        with tempfile.TemporaryDirectory(prefix="headgate-check-", ignore_cleanup_errors=True) as folder:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self.command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                    cwd=folder,
                    env={"PATH": os.defpath, "HOME": folder, "LANG": "C.UTF-8"},
                    start_new_session=True,
                    preexec_fn=self._limit,
                )
            except (OSError, subprocess.SubprocessError):
                return None
            try:
                await process.communicate(answer.encode(errors="replace"))
            finally:
                await _end(process)
        return {0: True, 1: False}.get(process.returncode if process.returncode is not None else -1)

    def _limit(self) -> None:
        """Runs in the child process before the command: sets limits that the command can't raise."""
        seconds = max(1, int(self.timeout_s) + 1)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (self.memory_mib * MIB,) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the whole process group, with children that the command left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
