"""`python -m tests.conformance`: the suite, and its cross product as a table of surface, provider and mode.

Exits as pytest does; further arguments are pytest's.
"""

from __future__ import annotations

import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conformance.house import KINDS

HERE = Path(__file__).parent
WAYS = {"whole": "whole", "stream": "streamed", "events": "streamed"}
ROW = "| {:<12} | {:<8} |" + " {:>9} |" * len(KINDS)


class Table:
    """Counts cases by surface, provider kind, streamed or not; sync and async clients together."""

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
            self._cells[item.nodeid] = (surface, way, asked["kind"])

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

    def cell(self, surface: str, way: str, kind: str) -> str:
        passed, failed = (count[surface, way, kind] for count in (self.passed, self.failed))
        return f"{passed}/{passed + failed}" if passed + failed else "-"

    def text(self) -> str:
        lines = [ROW.format("surface", "mode", *KINDS), ROW.format("-" * 12, "-" * 8, *["-" * 8 + ":"] * len(KINDS))]
        for surface, way in sorted({cell[:2] for cell in (*self.passed, *self.failed)}):
            lines.append(ROW.format(surface, way, *(self.cell(surface, way, kind) for kind in KINDS)))
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
