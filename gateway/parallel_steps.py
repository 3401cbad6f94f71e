"""Runs several steps of a cascade at the same time, until all have ended or one outcome is enough."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from cascade.types import Outcome

Step = Coroutine[Any, Any, Outcome]


async def run_parallel(
    steps: Sequence[Step], enough: Callable[[Outcome], bool] | None, cut: Callable[[int], Outcome]
) -> list[Outcome]:
    """The outcomes in the order of the steps. Once `enough` is true of an outcome, the steps that still run are
    cancelled, and `cut` gives the outcome for the index of each. No step is left running, even where one raises.
    """
    tasks = [asyncio.ensure_future(step) for step in steps]
    waiting = set(tasks)
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if enough is not None and any(enough(task.result()) for task in done):
                break
    finally:
        await _end(waiting)
    return [cut(place) if task.cancelled() else task.result() for place, task in enumerate(tasks)]


async def _end(tasks: set[asyncio.Task[Outcome]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
