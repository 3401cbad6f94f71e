"""Runs an operator's check on an answer in a process of its own: little time, little memory, no environment, no files
kept. Exit status 0 is a pass, 1 a failure; anything else, a signal or a hang says nothing about the answer.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import tempfile
from collections.abc import Sequence
from contextlib import suppress

MIB = 1024 * 1024


class Checker:
    """One check: a command that reads the answer on standard input."""

    def __init__(self, command: Sequence[str], *, timeout_s: float = 5.0, memory_mib: int = 512) -> None:
        if not command:
            raise ValueError("a check needs a command")
        self.command = tuple(command)
        self.timeout_s = timeout_s
        self.memory_mib = memory_mib

    async def check(self, answer: str) -> bool | None:
        """What the command says of the answer; None where it says nothing in time."""
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
            except OSError:
                return None
            try:
                await asyncio.wait_for(process.communicate(answer.encode()), self.timeout_s)
            except TimeoutError:
                return None
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
