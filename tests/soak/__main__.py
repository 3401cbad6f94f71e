"""`python -m tests.soak --minutes 30 [--clients 24] [--json FILE]`: mixed load with faults, and what grew under it."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

import msgspec
from rich.console import Console

from tests.soak.run import Verdict, soak

LIMIT = 1.0
"""Largest accepted growth in megabytes per 100,000 requests."""


def main() -> None:
    """Exit status 1 if anything was leaked or grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory(prefix="hgsoak") as folder, console.status("starting") as status:
        verdict = asyncio.run(
            soak(Path(folder), minutes=chosen.minutes, clients=chosen.clients, say=status.update)
        )
    show(console, verdict)
    if chosen.json:
        chosen.json.write_bytes(msgspec.json.encode(verdict))
    raise SystemExit(bool(verdict.leaks) or verdict.slope - verdict.slope_error > LIMIT)


def show(console: Console, verdict: Verdict) -> None:
    seen = ", ".join(f"{count:,} {what}" for what, count in sorted(verdict.statuses.items(), key=lambda one: -one[1]))
    console.print(f"{verdict.requests:,} requests in {verdict.minutes:.1f} minutes: {seen}")
    console.print(
        f"resident memory {verdict.rss_mb[0]:.1f} MB after the warm-up, {verdict.rss_mb[1]:.1f} MB at the end: "
        f"{verdict.slope:+.2f} +- {verdict.slope_error:.2f} MB per 100,000 requests (95 %)"
    )
    leaks = ", ".join(f"{count:g} {name}" for name, count in verdict.leaks.items())
    console.print(f"left at rest: {leaks or 'nothing: no task, socket, slot or hold'}")


if __name__ == "__main__":
    main()
