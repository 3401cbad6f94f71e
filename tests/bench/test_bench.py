"""The benchmark in its shortest form, and its assumption that connections are kept alive."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import ExitStack, closing
from pathlib import Path

import uvloop
from rich.console import Console

from gateway.journal.tables import decisions
from tests.bench.__main__ import main, ratio, show
from tests.bench.growth import fill
from tests.bench.load import load
from tests.bench.side import main as side
from tests.bench.targets import Case, headgate, upstream, upstream_connects


def test_every_case_is_measured_and_written(tmp_path: Path) -> None:
    """Without other gateways, each case has its CPU time, its share by process and a ratio to the bare proxy."""
    found = tmp_path / "bench.json"
    main(["--quick", "--seconds", "0.1", "--no-rivals", "--json", str(found)])
    result = json.loads(found.read_text())
    lines = {line["case"]: line for line in result["lines"]}
    assert set(lines) == {
        "bare proxy", "everything on", "without a cache", "pinned model",
        "bare proxy, streamed", "everything on, streamed",
    }  # fmt: skip
    for line in lines.values():
        assert line["cpu_us"] > 0 and line["over_bare"] > 0
        assert line["litellm_over_this"] is None
    assert set(lines["everything on"]["by_process_us"]) == {"main", "worker", "control"}
    assert lines["everything on"]["added_p50_ms"] is not None
    show(Console(quiet=True), result)


def test_connections_are_kept_alive_under_load(tmp_path: Path) -> None:
    """However many requests and streams there are, the upstream has no more connections than concurrent clients."""
    with ExitStack() as stack:
        url = stack.enter_context(upstream())
        target = stack.enter_context(headgate(tmp_path, url))
        before = upstream_connects(url)
        for stream in (False, True):
            for _ in range(2):
                done = uvloop.run(
                    load(target.url, model="auto", key=target.key, connections=8, seconds=0.3, stream=stream)
                )
                assert done["failures"] == 0, done["failure"]
                assert int(str(done["requests"])) >= 8
        own = 1  # the question itself
        assert upstream_connects(url) - before <= 8 + own


def test_ratios_are_medians_of_the_rounds_ratios() -> None:
    """A round in which the machine was busy counts no more than any other."""
    slow = Case("a", "a", "m", cpu_us=[10.0, 200.0, 30.0])
    fast = Case("b", "b", "m", cpu_us=[1.0, 20.0, 2.0])
    assert ratio(slow, fast) == 10.0


def test_gateways_are_measured_side_by_side(tmp_path: Path) -> None:
    """nginx and Headgate are measured in one run, with every figure of every case."""
    cases = side(["--quick", "--seconds", "0.1", "--only", "nginx", "headgate", "--connections", "1", "--parts",
                  "whole", "streams", "--memory-requests", "50", "--json", str(tmp_path / "side.json")])  # fmt: skip
    assert json.loads((tmp_path / "side.json").read_text())["memory"]["headgate"][2] >= 50
    lines = {case.line for case in cases}
    assert {"direct", "Headgate, pinned model", "Headgate, everything on"} <= lines
    for case in cases:
        assert case.median("p50_ms") > 0 and case.median("rps") > 0
        assert case.target == "upstream" or case.median("cpu_us") > 0
        if case.table.startswith("streams, a chunk"):
            assert case.median("delay_p50_us") > 0


def test_a_generated_large_journal_is_like_a_real_one(tmp_path: Path) -> None:
    """Rows made by the thousand have unique ids, times within the month, and every index of the schema."""
    fill(tmp_path / "journal.db", 3000)
    with closing(sqlite3.connect(tmp_path / "journal.db")) as db:
        count, ids, oldest = db.execute(
            "SELECT count(*), count(DISTINCT id), min(time_s) FROM decisions WHERE route = 'auto'"
        ).fetchone()
        assert count == ids == 3000
        assert time.time() - 30 * 86_400 < oldest < time.time()
        made = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    assert {index.name for index in decisions.indexes} <= made
