"""Is the data plane slower while dashboards are open? `python -m tests.bench.watchers [--watchers 10] [--rounds 6]`.

One real gateway; requests one after the other, in windows that alternate: nobody watches, then many dashboards, from
another process (each holds the live stream and reads the overview again whenever something has changed, as the page
does). Prints the median and 95th percentile of both kinds of window and the median of their paired differences.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from tests.gateway.admin.test_live import TOML
from tests.live import served
from tests.ports import free_port

KEY = {"authorization": "Bearer master"}


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.watchers", description=__doc__)
    parser.add_argument("--watchers", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        port, admin_port = free_port(), free_port()
        config = Path(folder) / "headgate.toml"
        config.write_text(TOML.format(folder=folder, port=port, admin_port=admin_port))
        async with served(config):
            print(json.dumps(await compared(port, admin_port, args.watchers, args.rounds, args.seconds)))


async def compared(port: int, admin_port: int, watchers: int, rounds: int, seconds: float) -> dict[str, object]:
    alone, watched, reads = list[list[float]](), list[list[float]](), 0
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=KEY, timeout=30) as client:
        await window(client, seconds / 2)
        for _ in range(rounds):
            alone.append(await window(client, seconds))
            others = multiprocessing.get_context("spawn")
            seen = others.Value("i", 0)
            process = others.Process(target=watch_all, args=(admin_port, watchers, seen))
            process.start()
            while seen.value < watchers:  # all of them are there
                await asyncio.sleep(0.05)
            watched.append(await window(client, seconds))
            process.terminate()
            process.join()
            reads += seen.value
    gaps = [statistics.median(b) - statistics.median(a) for a, b in zip(alone, watched, strict=True)]
    return {
        "watchers": watchers, "overviews_read": reads, "requests": [sum(map(len, alone)), sum(map(len, watched))],
        "alone_ms": _told(alone), "watched_ms": _told(watched), "median_gap_ms": round(statistics.median(gaps), 3),
    }  # fmt: skip


async def window(client: httpx.AsyncClient, seconds: float) -> list[float]:
    """Milliseconds of each request."""
    spent, until = list[float](), time.monotonic() + seconds
    while time.monotonic() < until:
        body = {"model": "auto", "messages": [{"role": "user", "content": f"question {time.monotonic_ns()}"}]}
        began = time.perf_counter()
        answer = await client.post("/v1/chat/completions", json=body)
        spent.append((time.perf_counter() - began) * 1e3)
        answer.raise_for_status()
    return spent


def watch_all(admin_port: int, watchers: int, seen: Any) -> None:
    """So many dashboards, until this process is ended."""

    async def run() -> None:
        await asyncio.gather(*(watch(admin_port, seen) for _ in range(watchers)))

    asyncio.run(run())


async def watch(admin_port: int, seen: Any) -> None:
    """One dashboard."""
    base = f"http://127.0.0.1:{admin_port}"
    async with (
        httpx.AsyncClient(base_url=base, headers=KEY, timeout=None) as client,
        client.stream("GET", "/admin/live") as stream,
    ):
        async for line in stream.aiter_lines():
            if line.startswith("data:"):
                (await client.get("/admin/overview?window=hour")).raise_for_status()
                with seen.get_lock():
                    seen.value += 1


def _told(windows: list[list[float]]) -> dict[str, float]:
    values = sorted(one for window in windows for one in window)
    return {"p50": round(statistics.median(values), 3), "p95": round(values[int(0.95 * len(values))], 3)}


if __name__ == "__main__":
    asyncio.run(main())
