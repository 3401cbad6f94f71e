"""Runs an operator's check on an answer in a process of its own: little time, little memory, no environment, no files
kept. Exit status 0 is a pass, 1 a failure; anything else, a signal or a hang says nothing about the answer.
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
"""Checks of one route that run at the same time in one worker; more wait their turn, within their own time."""


class Checker:
    """One check: a command that reads the answer on standard input."""

    def __init__(self, command: Sequence[str], *, timeout_s: float = 5.0, memory_mib: int = 512) -> None:
        if not command:
            raise ValueError("a check needs a command")
        self.command = tuple(command)
        self.timeout_s = timeout_s
        self.memory_mib = memory_mib
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def check(self, answer: str, *, within_s: float = inf) -> bool | None:
        """What the command says of the answer; None where it says nothing in time, waiting for its turn included."""
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
        """In the child, before the command: bounds that the command can't raise."""
        seconds = max(1, int(self.timeout_s) + 1)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (self.memory_mib * MIB,) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


async def _end(process: asyncio.subprocess.Process) -> None:
    """The whole process group goes, children that the command left behind included."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
