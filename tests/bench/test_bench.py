"""The benchmark itself, in its shortest form, and what it relies on: connections that are kept alive."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import uvloop
from rich.console import Console

from tests.bench.__main__ import main, ratio, show
from tests.bench.load import load
from tests.bench.targets import Case, headgate, upstream, upstream_connects


def test_it_measures_every_case_and_writes_it_down(tmp_path: Path) -> None:
    """Without rivals: each case has its CPU time, its share by process and a ratio to the bare proxy."""
    found = tmp_path / "bench.json"
    main(["--quick", "--seconds", "0.1", "--no-rivals", "--json", str(found)])
    result = json.loads(found.read_text())
    lines = {line["case"]: line for line in result["lines"]}
    assert set(lines) == {
        "bare proxy", "everything on", "pinned model", "bare proxy, streamed", "everything on, streamed",
    }  # fmt: skip
    for line in lines.values():
        assert line["cpu_us"] > 0 and line["over_bare"] > 0
        assert line["litellm_over_this"] is None
    assert set(lines["everything on"]["by_process_us"]) == {"main", "worker", "control"}
    assert lines["everything on"]["added_p50_ms"] is not None
    show(Console(quiet=True), result)


def test_connections_are_kept_alive_under_load(tmp_path: Path) -> None:
    """However many requests and streams pass, the upstream sees no more connections than clients at once."""
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


def test_ratios_are_of_rounds_not_of_medians() -> None:
    """A round in which the machine was busy weighs no more than any other."""
    slow = Case("a", "a", "m", cpu_us=[10.0, 200.0, 30.0])
    fast = Case("b", "b", "m", cpu_us=[1.0, 20.0, 2.0])
    assert ratio(slow, fast) == 10.0
