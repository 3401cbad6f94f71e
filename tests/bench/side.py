"""Headgate, nginx, Portkey and LiteLLM side by side in one run, at 1 to 256 connections, whole and streamed.

    python -m tests.bench.side [--rounds 3] [--seconds 2] [--pin] [--quick] [--only NAME ...] [--json FILE]
                               [--parts whole slow streams] [--memory-requests 100000]

Every round takes every case once, one after the other. `--pin`: what is measured runs on core 0, upstream and load on
core 1. See tests/bench/README.md for what is counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from tests.bench.__main__ import machine, own_versions, progress, stay_on
from tests.bench.measure import Ask, Cost, measure, rss_mb
from tests.bench.rivals import (
    PORTKEY,
    has_nginx,
    install_litellm,
    install_portkey,
    litellm,
    nginx,
    portkey,
    version_of,
)
from tests.bench.targets import Target, headgate, reference, upstream
from tests.bench.upstream import CHUNKS, SEED_MS

CONNECTIONS = (1, 16, 64, 256)
WAIT_MS = 50
GAP_US = 5000
LINES = (
    ("bare proxy", "reference", "m"),
    ("nginx", "nginx", "m"),
    ("Headgate, pinned model", "headgate", "mini"),
    ("Headgate, everything on", "headgate", "auto"),
    ("Portkey", "portkey", "mini"),
    ("LiteLLM", "litellm", "mini"),
)
"""Name, target and model of each line."""
PARTS = ("whole", "slow", "streams")
MEMORY_CONNECTIONS = 64
SLOW_SHARE = 20
"""How many requests of the memory's count a gateway as slow as LiteLLM is asked for: one in so many."""


@dataclass(slots=True)
class Case:
    """One figure's circumstances, and what each round measured."""

    table: str
    line: str
    target: str
    ask: Ask
    rounds: list[Cost] = field(default_factory=list)

    def median(self, name: str) -> float:
        return statistics.median(getattr(cost, name) for cost in self.rounds)


def main(words: Sequence[str] | None = None) -> list[Case]:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.side")
    parser.add_argument("--quick", action="store_true", help="to see that it works, not to quote")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--pin", action="store_true")
    parser.add_argument("--only", nargs="*", default=[target for _, target, _ in LINES])
    parser.add_argument("--connections", type=int, nargs="*", default=list(CONNECTIONS))
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--memory-requests", type=int)
    parser.add_argument("--rivals", type=Path, default=Path.home() / ".cache" / "headgate-bench")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(words)
    rounds = args.rounds or (1 if args.quick else 3)
    seconds = args.seconds or (0.3 if args.quick else 2.0)
    console = Console(width=140)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headgate-side-")))
        with console.status("starting"):
            url, targets, versions = start(stack, folder, args.rivals, args.only, pin=args.pin)
        parts = {"whole": whole_cases(args.connections), "slow": slow_cases(), "streams": stream_cases()}
        cases = [case for name in args.parts for case in parts[name] if case.target in targets]
        first = 0 if args.quick else -1
        with progress(console, (rounds - first) * len(cases)) as say:
            for turn in range(first, rounds):
                for case in cases:
                    say(f"{'warming up' if turn < 0 else f'round {turn + 1}'}: {case.table}, {case.line}")
                    target = targets[case.target]
                    cost = measure(target, target.url if target else url, case.ask, seconds if turn >= 0 else 0.3)
                    if turn >= 0:
                        case.rounds.append(cost)
        with console.status("memory"):
            memory = memory_of(targets, args.memory_requests or (2000 if args.quick else 100_000))
    show(console, cases)
    show_memory(console, memory)
    console.print(", ".join(f"{name} {version}" for name, version in versions.items()))
    console.print(f"{machine()}; {rounds} rounds of {seconds} s per figure{', pinned' if args.pin else ''}")
    if args.json:
        args.json.write_bytes(
            msgspec.json.encode({"cases": cases, "memory": memory, "versions": versions, "machine": machine()})
        )
    return cases


def start(
    stack: ExitStack, folder: Path, rivals: Path, only: Sequence[str], *, pin: bool
) -> tuple[str, dict[str, Target | None], dict[str, str]]:
    """All targets, up at the same time; only one is under load at a time."""
    versions = own_versions()
    rig, ours = ({1}, {0}) if pin and (os.cpu_count() or 1) > 1 else (set(), set())
    stay_on(rig)
    url = stack.enter_context(upstream())
    stay_on(ours)
    targets: dict[str, Target | None] = {"upstream": None}
    if "reference" in only:
        targets["reference"] = stack.enter_context(reference(folder, url))
    if "headgate" in only:
        targets["headgate"] = stack.enter_context(headgate(folder, url))
    if "nginx" in only and has_nginx():
        targets["nginx"] = stack.enter_context(nginx(folder, url))
    home = install_portkey(rivals) if "portkey" in only else None
    if home is not None:
        targets["portkey"] = stack.enter_context(portkey(folder, home, url))
        versions["portkey"] = PORTKEY.rpartition("@")[2]
    if "litellm" in only:
        home = install_litellm(rivals)
        targets["litellm"] = stack.enter_context(litellm(folder, home, url))
        versions["litellm"] = version_of(home, "litellm")
    stay_on(rig)
    return url, targets, versions


def whole_cases(connections: Sequence[int]) -> list[Case]:
    lines = (("direct", "upstream", "m"), *LINES)
    return [
        Case(f"whole, {count} connections", name, target, Ask(model, count))
        for count in connections
        for name, target, model in lines
    ]


def slow_cases() -> list[Case]:
    """An upstream that takes its time: what waiting requests cost."""
    lines = (("direct", "upstream", "m"), *LINES)
    return [
        Case(f"upstream of {WAIT_MS} ms, {count} at once", name, target, Ask(model, count, seed=WAIT_MS * SEED_MS))
        for count in (8, 64, 256)
        for name, target, model in lines
    ]


def stream_cases() -> list[Case]:
    lines = (("direct", "upstream", "m"), *LINES)
    kinds = ((f"streams, a chunk every {GAP_US // 1000} ms", GAP_US), ("streams in a burst", 0))
    return [
        Case(f"{kind}, {count} at once", name, target, Ask(model, count, stream=True, seed=gap))
        for kind, gap in kinds
        for count in (4, 64)
        for name, target, model in lines
    ]


def memory_of(targets: dict[str, Target | None], requests: int) -> dict[str, tuple[float, float, int]]:
    """Megabytes before and after so many requests more."""
    found = {}
    for name, target in targets.items():
        if target is None:
            continue
        many = requests // SLOW_SHARE if name == "litellm" else requests
        model = "auto" if name == "headgate" else "mini"
        before = rss_mb(target.pid)
        done = measure(target, target.url, Ask(model, MEMORY_CONNECTIONS, most=many), 3600).requests
        found[name] = (before, rss_mb(target.pid), done)
    return found


def show(console: Console, cases: Sequence[Case]) -> None:
    direct = {case.table: case for case in cases if case.target == "upstream"}
    rival = {case.table: case for case in cases if case.target == "litellm"}
    other = {case.table: case for case in cases if case.target == "portkey"}
    for name in dict.fromkeys(case.table for case in cases):
        streams = name.startswith("streams")
        unit = "chunk" if streams else "request"
        columns = [name, f"CPU-us / {unit}", f"{'streams' if streams else 'requests'} / s"]
        columns += ["added p50 ms", "added p99 ms"]
        columns += ["chunk delay us p50", "added"] if streams else []
        table = Table(*columns, "LiteLLM costs", "Portkey costs", box=None)
        for case in (case for case in cases if case.table == name):
            table.add_row(*row(case, direct[name], rival.get(name), other.get(name), streams=streams))
        console.print(table, "")


def row(case: Case, direct: Case, rival: Case | None, other: Case | None, *, streams: bool) -> list[str]:
    is_direct = case.target == "upstream"
    cost = case.median("cpu_us") / (CHUNKS if streams else 1)
    told = [case.line, "" if is_direct else f"{cost:,.1f}", f"{case.median('rps'):,.0f}"]
    told += [f"{case.median(name) - (0 if is_direct else direct.median(name)):,.2f}" for name in ("p50_ms", "p99_ms")]
    if streams:
        delay = case.median("delay_p50_us")
        told += [f"{delay:,.0f}", "" if is_direct else f"{delay - direct.median('delay_p50_us'):,.0f}"]
    return [*told, times(rival, case), times(other, case)]


def times(above: Case | None, below: Case) -> str:
    """How often the other's cost, as the median of the rounds' own ratios."""
    if above is None or below.target != "headgate":
        return ""
    ratios = [a.cpu_us / b.cpu_us for a, b in zip(above.rounds, below.rounds, strict=True)]
    return f"{statistics.median(ratios):,.1f} x"


def show_memory(console: Console, memory: dict[str, tuple[float, float, int]]) -> None:
    table = Table("memory of the whole tree", "MB before", "MB after", "requests between", box=None)
    for name, (before, after, requests) in memory.items():
        table.add_row(name, f"{before:.0f}", f"{after:.0f}", f"{requests:,}")
    console.print(table, "")


if __name__ == "__main__":
    main()
