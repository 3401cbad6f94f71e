"""`python -m tests.conformance`: the suite, and its cross product as a table of surface, provider and mode.

Exits as pytest does; further arguments are pytest's.
"""

from __future__ import annotations

import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WAYS = {"whole": "whole", "stream": "streamed", "events": "streamed"}
ROW = "| {:<12} | {:<10} | {:<8} | {:<5} | {:>6} | {:>6} |"


class Table:
    """Counts cases by surface, provider kind, streamed or not, sync or async."""

    def __init__(self) -> None:
        self.passed: Counter[tuple[str, ...]] = Counter()
        self.failed: Counter[tuple[str, ...]] = Counter()
        self._cells: dict[str, tuple[str, ...]] = {}
        self.others: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            asked = item.callspec.params if hasattr(item, "callspec") else {}
            if item.path.name != "test_surfaces.py" or "kind" not in asked:
                continue
            surface = asked.get("surface", "embeddings" if "embeddings" in item.name else "chat")
            way = WAYS[asked.get("way", "whole")]
            self._cells[item.nodeid] = (surface, asked["kind"], way, asked.get("mode", "async"))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        if report.skipped:
            self.others["skipped"] += 1
            return
        cell = self._cells.get(report.nodeid)
        if cell is None:
            self.others["passed" if report.passed else "failed"] += 1
        else:
            (self.passed if report.passed else self.failed)[cell] += 1

    def text(self) -> str:
        lines = [ROW.format("surface", "provider", "mode", "sdk", "passed", "failed"),
                 ROW.format("-" * 12, "-" * 10, "-" * 8, "-" * 5, "-" * 5 + ":", "-" * 5 + ":")]  # fmt: skip
        for cell in sorted({*self.passed, *self.failed}):
            lines.append(ROW.format(*cell, self.passed[cell], self.failed[cell]))
        cells = f"cross product: {self.passed.total()} passed, {self.failed.total()} failed"
        others = ", ".join(f"{count} {what}" for what, count in sorted(self.others.items()))
        clients = ", ".join(f"{name} {version(name)}" for name in ("openai", "anthropic"))
        return "\n".join([*lines, "", f"{cells}; everything else: {others or 'not run'}; clients: {clients}"])


def main() -> int:
    table = Table()
    code = pytest.main([str(HERE), "-p", "no:xdist", *sys.argv[1:]], plugins=[table])
    print(table.text())
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
