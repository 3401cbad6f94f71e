"""What a request costs as bodies, keys, routes and the journal grow.

    python -m tests.bench.growth [--rounds 3] [--seconds 2] [--keys 10 100 1000 10000] [--rows 0 1000000 10000000]
                                 [--json FILE]

Each size has a gateway of its own; all are up at once and every round takes each once, so that what else the machine
does meets all alike. The journal is filled with rows like those the gateway writes, before the gateway starts.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from gateway.journal.schema import migrate
from tests.bench.__main__ import machine, progress
from tests.bench.measure import Ask, measure
from tests.bench.targets import POOL, Target, headgate, upstream

BODIES = (512, 5_000, 50_000, 200_000, 1_000_000)
KEYS = (10, 100, 1_000, 10_000)
ROWS = (0, 1_000_000, 10_000_000)
BATCH = 50_000
SPAN_S = 29 * 86_400
PREFIXES = 997
"""Ids of a worker share a prefix: the journal of a long time holds those of many."""
Figures = dict[str, list[float]]


def main(words: Sequence[str] | None = None) -> dict[str, Figures]:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--bodies", type=int, nargs="*", default=list(BODIES))
    parser.add_argument("--keys", type=int, nargs="*", default=list(KEYS))
    parser.add_argument("--rows", type=int, nargs="*", default=list(ROWS))
    parser.add_argument("--folder", type=Path, help="where the journals are made; 10,000,000 rows take about 12 GB")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(words)
    console = Console(width=120)
    found: dict[str, Figures] = {}
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="headgate-growth-", dir=args.folder) as name, ExitStack() as stack:
        url = stack.enter_context(upstream())
        for title, build in (
            ("bytes of body", by_body(args.bodies)),
            ("keys and as many routes", by_keys(args.keys)),
            ("rows in the journal", by_rows(args.rows, console)),
        ):
            if not (args.bodies, args.keys, args.rows)[len(found)]:
                found[title] = {}
                continue
            found[title] = compare(console, title, build, Path(name) / str(len(found)), url, args)
            show(console, title, found[title])
    console.print(f"{machine()}; {args.rounds} rounds of {args.seconds} s per figure, 16 connections")
    if args.json:
        args.json.write_bytes(msgspec.json.encode({"growth": found, "machine": machine()}))
    return found


Build = Iterator[tuple[str, str, int, int]]
"""A size's name, further configuration, bytes of body, and rows to put into the journal."""


def by_body(sizes: Sequence[int]) -> Build:
    for size in sizes:
        yield f"{size:,}", "", size, 0


def by_keys(counts: Sequence[int]) -> Build:
    for count in counts:
        yield f"{count:,}", crowd(count), 0, 0


def by_rows(counts: Sequence[int], console: Console) -> Build:
    for count in counts:
        yield f"{count:,}", "", 0, count


def crowd(count: int) -> str:
    """So many further keys with limits and budgets, and as many routes."""
    tables = []
    for number in range(count):
        tables.append(
            f'[[auth.keys]]\nname = "k{number}"\nkey = "hg-crowd-{number:08d}-{number * 7919:012d}"\n'
            f"rpm = 1000\nbudget_usd = 10\n"
            f'[[routes]]\nname = "r{number}"\nmodels = ["nano", "mini"]\nrouter = "cheapest"\ncache = "exact"\n'
        )
    return "".join(tables)


def compare(
    console: Console, title: str, build: Build, folder: Path, url: str, args: argparse.Namespace
) -> Figures:
    """CPU-us per request of every size in each round."""
    figures: Figures = {}
    with ExitStack() as stack:
        targets: list[tuple[str, Target, int]] = []
        shared: Target | None = None
        for name, more, body_bytes, rows in build:
            home = folder / name.replace(",", "")
            home.mkdir(parents=True)
            if rows:
                with console.status(f"{title}: making {name}"):
                    fill(home / "journal.db", rows)
            if shared is None or not body_bytes:
                with console.status(f"{title}: starting {name}"):
                    shared = stack.enter_context(headgate(home, url, more))
            targets.append((name, shared, body_bytes))
        with progress(console, (args.rounds + 1) * len(targets)) as say:
            for turn in range(-1, args.rounds):
                for name, target, body_bytes in targets:
                    say(f"{title}: {name}")
                    cost = measure(target, target.url, Ask("auto", body_bytes=body_bytes), args.seconds)
                    if turn >= 0:
                        figures.setdefault(name, []).append(cost.cpu_us)
    return figures


def show(console: Console, title: str, figures: Figures) -> None:
    names = list(figures)
    table = Table(title, "CPU-us / request", f"beside {names[0]}", box=None)
    for name in names:
        ratios = [one / first for one, first in zip(figures[name], figures[names[0]], strict=True)]
        table.add_row(name, f"{statistics.median(figures[name]):,.0f}", f"{statistics.median(ratios):.2f}")
    console.print(table)
    if title.startswith("bytes") and len(names) > 1:
        first, last = names[0], names[-1]
        kilobytes = (int(last.replace(",", "")) - int(first.replace(",", ""))) / 1e3
        slope = (statistics.median(figures[last]) - statistics.median(figures[first])) / kilobytes
        console.print(f"{slope:.2f} CPU-us for each kilobyte more")
    console.print()


# ---- a large journal


def fill(path: Path, rows: int) -> None:
    """Decisions as the gateway writes them, over the last thirty days. About 100,000 rows a second."""
    migrate(f"sqlite:///{path}")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        indexes = db.execute(
            "SELECT name, sql FROM sqlite_master WHERE tbl_name = 'decisions' AND type = 'index' AND sql IS NOT NULL"
        ).fetchall()
        for name, _ in indexes:
            db.execute(f'DROP INDEX "{name}"')
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -400000")
        columns = [(name, kind) for _, name, kind, *_ in db.execute("PRAGMA table_info(decisions)")]
        insert = f"INSERT INTO decisions ({', '.join(name for name, _ in columns)}) " + _select(columns)
        now, each = time.time(), rows // PREFIXES + 1
        for first in range(0, rows, BATCH):
            last = min(first + BATCH, rows) - 1
            span = {"from": now - SPAN_S, "step": SPAN_S / rows}
            db.execute(insert, {"first": first, "last": last, "each": each, **span})
        for _, sql in indexes:
            db.execute(sql)
        db.execute("PRAGMA journal_mode = WAL")


def _select(columns: Sequence[tuple[str, str]]) -> str:
    """Rows `first` to `last` by a counter; ids of `each` rows in a row share a prefix, in their sorting order."""
    tail = "printf('%06x%010x%08x', n / :each * 16807, (n / :each * 48271) % 1099511627776, n % :each)"
    special = {
        "id": f"'dec_' || {tail}",
        "request_id": f"'req_' || {tail}",
        "response_id": f"'chatcmpl-' || {tail}",
        "time_s": ":from + n * :step",
        "tenant": "'shop'",
        "key_id": "'bench'",
        "route": "'auto'",
        "model": f"CASE n % {len(POOL)} " + " ".join(f"WHEN {i} THEN '{m}'" for i, m in enumerate(POOL)) + " END",
        "answered_model": "'mini'",
        "router": "'linear'",
        "cache": "'miss'",
        "status": "200",
        "cost_nanousd": "100000 + n % 9973",
        "latency_s": "0.5 + (n % 100) / 100.0",
        "counted": "1",
        "payload": """'{"id":"dec_","usage":{"input":92,"output":48},"attempts":[{"model":"mini","status":200}]}'""",
    }
    plain = {"TEXT": "''", "INTEGER": "0", "BIGINT": "0"}
    chosen = [special.get(name, plain.get(kind.upper(), "0")) for name, kind in columns]
    return (
        "WITH RECURSIVE c(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM c WHERE n < :last) "
        f"SELECT {', '.join(chosen)} FROM c"
    )


if __name__ == "__main__":
    main()
