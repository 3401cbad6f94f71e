"""Puts load on a gateway for a while and measures what grows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.soak.load import Soaked, client, fill_up
from tests.soak.stage import GAUGES, KEY, Soaking, soaking

BLOCKS = 12
T_95 = 2.228
"""Student's t at 95 % for BLOCKS - 2 degrees of freedom."""
WARM_SHARE = 0.25
"""Share of the samples that are left out at the beginning, in which pools and the allocator fill up to their bounds."""
MB = 1e6


@dataclass(slots=True)
class Verdict:
    """The result of a soak."""

    requests: int = 0
    minutes: float = 0.0
    rss_mb: tuple[float, float] = (0.0, 0.0)
    """Resident memory at the end of the warm-up, and at the end."""
    slope: float = 0.0
    """Megabytes per 100,000 requests after the warm-up."""
    slope_error: float = 0.0
    """Half the width of its 95 % interval."""
    leaks: dict[str, float] = field(default_factory=dict)
    """What is left at rest and should not be."""
    statuses: dict[str, int] = field(default_factory=dict)
    samples: list[tuple[int, int]] = field(default_factory=list)
    """Number of requests so far, and resident bytes."""


async def soak(
    folder: Path, *, minutes: float, clients: int, requests: int = 0, say: Callable[[str], object] = str
) -> Verdict:
    """Runs for this time, or for this many requests if that is shorter."""
    async with soaking(folder) as here:
        await fill_up(("127.0.0.1", here.port), KEY)
        before, files = await here.at_rest(), here.files()
        begun = time.monotonic()
        soaked = Soaked(until=begun + 60 * minutes, most=requests)
        asking = [
            asyncio.create_task(client(("127.0.0.1", here.port), KEY, number, soaked)) for number in range(clients)
        ]
        samples = await sampled(here, soaked, asking, 60 * minutes / 600 if not requests else 0.1, say)
        await asyncio.gather(*asking)
        left = await here.at_rest()
        verdict = Verdict(soaked.requests, (time.monotonic() - begun) / 60, statuses=dict(soaked.statuses))
        verdict.leaks = {name: left[name] for name in GAUGES.values() if left[name]}
        verdict.leaks |= await leaked(here, before["tasks"], files)
    verdict.samples = samples
    warm = samples[round(len(samples) * WARM_SHARE) :]
    verdict.rss_mb = (warm[0][1] / MB, warm[-1][1] / MB)
    verdict.slope, verdict.slope_error = slope(warm)
    return verdict


async def sampled(
    here: Soaking, soaked: Soaked, asking: list[asyncio.Task[None]], every_s: float, say: Callable[[str], object]
) -> list[tuple[int, int]]:
    """Pairs of requests and resident bytes until all clients are done."""
    found = []
    while not all(task.done() for task in asking):
        await asyncio.wait(asking, timeout=every_s)
        found.append((soaked.requests, here.rss_bytes()))
        say(f"{soaked.requests:,} requests, {found[-1][1] / MB:.1f} MB")
    return found


async def leaked(here: Soaking, tasks: float, files: int) -> dict[str, float]:
    """Tasks and files that exist now and didn't at the beginning; idle connections to upstreams may stay."""
    deadline = time.monotonic() + 10
    while True:
        left = await here.left()
        more = {
            "tasks": left["tasks"] - tasks,
            "files and sockets": here.files() - files - left["idle connections"] - EXTRA_FILES,
        }
        if all(count <= 0 for count in more.values()):
            return {}
        if time.monotonic() > deadline:
            return {name: count for name, count in more.items() if count > 0}
        await asyncio.sleep(0.1)


EXTRA_FILES = 2
"""Files that are opened when first needed and kept: the spool's segment and the journal's reader."""


def slope(samples: list[tuple[int, int]]) -> tuple[float, float]:
    """Megabytes per 100,000 requests with half the width of the 95 % interval, by a line through the means of BLOCKS
    blocks.

    Neighbouring samples are correlated, blocks hardly.
    """
    if len(samples) < 2 * BLOCKS:
        return 0.0, float("inf")
    blocks = np.array_split(np.array(samples, dtype=float), BLOCKS)
    x, y = np.array([block.mean(0) for block in blocks]).T
    x, y = x / 1e5, y / MB
    dx = x - x.mean()
    line = float((dx * y).sum() / (dx * dx).sum())
    rest = y - y.mean() - line * dx
    error = float(np.sqrt((rest**2).sum() / (BLOCKS - 2) / (dx * dx).sum()))
    return line, T_95 * error
