"""Waiting in tests: for a condition and not for a fixed time, with a limit that is generous for busy machines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE_S = 60.0


async def until(condition: Callable[[], bool]) -> None:
    """Return as soon as the condition holds. Raises TimeoutError after PATIENCE_S seconds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)
