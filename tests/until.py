"""Tests wait for what must become true, not for a while: a busy machine takes longer, and the limit is generous."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE_S = 60.0


async def until(true: Callable[[], bool]) -> None:
    """Come back as soon as it is so. TimeoutError after a minute."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.002)
