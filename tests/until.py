"""Waiting in tests: for a condition and not for a fixed time, with a limit that is generous for busy machines."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

PATIENCE_S = 60.0
T = TypeVar("T")


@overload
async def until(condition: Callable[[], Awaitable[T]], within_s: float = ...) -> T: ...


@overload
async def until(condition: Callable[[], T], within_s: float = ...) -> T: ...


async def until(condition: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    """Return the condition's result as soon as it is true. A result that can be awaited is awaited.

    Raises TimeoutError after `within_s` seconds.
    """
    async with asyncio.timeout(within_s):
        while True:
            result = condition()
            pause_s = 0.002
            if inspect.isawaitable(result):
                result, pause_s = await result, 0.02
            if result:
                return result
            await asyncio.sleep(pause_s)
