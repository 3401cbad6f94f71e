"""`python -m tests.faults`: every fault on every surface, and how each ended, as a table."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.faults.cases import STREAMED, WHOLE, Fault, cases_of
from tests.faults.checks import check
from tests.faults.stage import Result, run_cases

console = Console(width=140)


def main() -> None:
    """Exit status 1 if a case ended in another way than it must."""
    begun = time.monotonic()
    suites = [(fault, stream) for stream, faults in ((True, STREAMED), (False, WHOLE)) for fault in faults]
    table = Table("", "fault", "alone", "with a fallback", "attempts", "billed, n$", "held", box=None)
    wrong: list[str] = []
    cases = 0
    for fault, stream in track(suites, "faults", console=Console(stderr=True), transient=True):
        results = meet(fault, stream=stream)
        cases += len(results)
        wrong += complaints(results)
        table.add_row(*row(fault, results, stream=stream))
    console.print(table)
    console.print(f"{cases} cases in {time.monotonic() - begun:.0f} s, {len(wrong)} ended as they must not")
    for complaint in wrong:
        console.print(complaint, style="red")
    raise SystemExit(bool(wrong))


def meet(fault: Fault, *, stream: bool) -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run_cases(Path(folder), list(cases_of(fault, stream=stream))))


def complaints(results: Iterable[Result]) -> list[str]:
    found = []
    for result in results:
        try:
            check(result)
        except AssertionError as wrong:
            found.append(f"{result.case.name}: {wrong}")
    return found


def row(fault: Fault, results: list[Result], *, stream: bool) -> list[str]:
    """Both kinds of provider and all surfaces in one line; differences between them are listed."""
    alone = [result for result in results if not result.case.fallback]
    helped = [result for result in results if result.case.fallback]
    return [
        "stream" if stream else "whole",
        fault.name,
        listed(as_text(result) for result in alone),
        listed(as_text(result) for result in helped),
        f"{listed(str(len(r.record.attempts)) for r in alone)} / {listed(str(len(r.record.attempts)) for r in helped)}",
        f"{span(r.spent for r in alone)} / {span(r.spent for r in helped)}",
        span(result.held for result in results),
    ]


def as_text(result: Result) -> str:
    if result.ending == "error":
        return f"error {result.heard.status}"
    return result.ending


def listed(words: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(words))


def span(amounts: Iterable[int]) -> str:
    """The smallest and largest value, or one number if they are equal."""
    known = sorted(amounts)
    return f"{known[0]}" if known[0] == known[-1] else f"{known[0]}-{known[-1]}"


if __name__ == "__main__":
    main()
