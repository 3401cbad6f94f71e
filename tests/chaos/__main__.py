"""`python -m tests.chaos [--fault WORDS] [--json FILE]`: every fault under load, and its effects, as a table."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from tests.chaos.faults import FAULTS
from tests.chaos.run import Report, Scale, run
from tests.chaos.stage import missing


def main() -> None:
    """Exit status 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--fault", default="", help="only faults whose name holds these words")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--away", choices=("refuse", "share"), default="refuse", help="storage.redis_away")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if missing():
        raise SystemExit(missing())
    faults = [fault for fault in FAULTS if chosen.fault.lower() in fault.name.lower()]
    scale = Scale(clients=chosen.clients, answers=150, away=chosen.away)
    console, begun = Console(width=170), time.monotonic()
    broken = []
    for _ in range(chosen.rounds):
        with tempfile.TemporaryDirectory(prefix="hgchaos") as folder, console.status("") as status:
            report = asyncio.run(run(Path(folder), faults, scale, status.update))
        show(console, report)
        broken += report.complaints
        if chosen.json:
            chosen.json.write_text(msgspec.json.format(msgspec.json.encode(report)).decode())
    console.print(f"{time.monotonic() - begun:.0f} s")
    raise SystemExit(bool(broken))


def show(console: Console, report: Report) -> None:
    table = Table("fault", "while it lasts", "until all is well", "longest", "recovery", "sold/bought/budget", box=None)
    for result in report.results:
        if result.skipped:
            table.add_row(result.fault, f"skipped: {result.skipped}")
            continue
        table.add_row(
            result.fault, told(result.during), told(result.after), f"{result.longest_s:.2f} s",
            f"{result.recovered_s:.1f} s", f"{result.sold}/{result.bought}/{result.budget}",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"{report.answered} answers and {report.acknowledged} feedbacks acknowledged: "
        f"{report.lost_answers} decisions and {report.lost_feedback} feedbacks lost, {report.twice} stored twice"
    )
    for complaint in report.complaints:
        console.print(complaint, style="red", markup=False)


def told(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in outcomes.most_common())


if __name__ == "__main__":
    main()
