"""CPU time per request of Headgate, beside another gateway and beside a bare proxy, in one run.

    python -m tests.bench [--quick] [--rounds 5] [--no-rivals] [--rivals DIR] [--json FILE]

Every round measures every case once, one after the other, so what else the machine does meets all alike;
ratios are taken within a round. See tests/bench/README.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.bench.rivals import install_litellm, litellm, version_of
from tests.bench.targets import Case, Target, cpu_ns, headgate, reference, upstream
from tests.bench.upstream import CHUNKS

CONNECTIONS = 16
TRAIL_S = 0.6
"""After the load, so that the journal's shipping of these requests is counted too."""
PROGRAMS = ("uvicorn", "uvloop", "httptools", "msgspec", "numpy")


def main(words: Sequence[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--quick", action="store_true", help="short rounds: to see that it works, not to quote")
    parser.add_argument("--rounds", type=int, help="default 5; with --quick 1")
    parser.add_argument("--seconds", type=float, help="of load per case and round; default 3; with --quick 0.3")
    parser.add_argument("--no-rivals", action="store_true", help="Headgate and the bare proxy only")
    parser.add_argument("--rivals", type=Path, default=Path.home() / ".cache" / "headgate-bench")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    args = parser.parse_args(words)
    rounds = args.rounds or (1 if args.quick else 5)
    seconds = args.seconds or (0.3 if args.quick else 3.0)
    console = Console(width=120)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headgate-bench-")))
        versions = own_versions()
        home = None
        if not args.no_rivals:
            with console.status("installing LiteLLM (once, into an environment of its own)"):
                home = install_litellm(args.rivals)
            versions["litellm"] = version_of(home, "litellm")
        with console.status("starting"):
            url, targets = start(stack, folder, home)
        found = cases(targets)
        parts = measure(console, url, targets, found, rounds, seconds)
    result = report(found, parts, versions, rounds, seconds, words)
    show(console, result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    return result


def start(stack: ExitStack, folder: Path, litellm_home: Path | None) -> tuple[str, dict[str, Target]]:
    """All targets, up at the same time; only one is under load at a time."""
    rig, ours = ({1}, {0}) if (os.cpu_count() or 1) > 1 else (set(), set())
    stay_on(rig)
    url = stack.enter_context(upstream())
    stay_on(ours)
    targets = [stack.enter_context(reference(folder, url)), stack.enter_context(headgate(folder, url))]
    if litellm_home is not None:
        targets.append(stack.enter_context(litellm(folder, litellm_home, url)))
    stay_on(rig)
    return url, {target.name: target for target in targets}


def stay_on(cores: set[int]) -> None:
    """Children are born where their parent is: gateways on one core, load and upstream on another."""
    if cores:
        os.sched_setaffinity(0, cores)


def cases(targets: dict[str, Target]) -> list[Case]:
    """In the order in which every round takes them."""
    found = [
        Case("reference", "bare proxy", "m"),
        Case("headgate", "everything on", "auto"),
        Case("headgate", "without a cache", "routed"),
        Case("headgate", "pinned model", "mini"),
        Case("litellm", "LiteLLM", "mini"),
        Case("reference", "bare proxy, streamed", "m", stream=True),
        Case("headgate", "everything on, streamed", "auto", stream=True),
        Case("litellm", "LiteLLM, streamed", "mini", stream=True),
    ]
    return [case for case in found if case.target in targets]


def measure(
    console: Console, url: str, targets: dict[str, Target], found: list[Case], rounds: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Fills each case; returns Headgate's CPU time by process, and the upstream's own latency."""
    parts: dict[str, dict[str, list[float]]] = {}
    direct = Case("upstream", "direct", "m")
    with progress(console, (rounds + 1) * len(found)) as say:
        for case in found:
            say(f"warming up: {case.name}")
            load(targets[case.target].url, targets[case.target].key, case, CONNECTIONS, min(1.0, seconds))
        for turn in range(rounds):
            direct.p50_ms.append(load(url, "none", direct, 1, seconds / 4)["p50_ms"])
            for case in found:
                say(f"round {turn + 1}: {case.name}")
                target = targets[case.target]
                spent = cost_us(target, case, seconds)
                case.cpu_us.append(sum(spent.values()))
                for part, us in spent.items():
                    parts.setdefault(case.name, {}).setdefault(part, []).append(us)
                if not case.stream:
                    case.p50_ms.append(load(target.url, target.key, case, 1, seconds / 4)["p50_ms"])
    parts["direct"] = {"p50_ms": direct.p50_ms}
    return parts


def cost_us(target: Target, case: Case, seconds: float) -> dict[str, float]:
    """CPU-microseconds of the target's whole process tree per request or chunk, by process."""
    before = cpu_ns(target.pid)
    done = load(target.url, target.key, case, CONNECTIONS, seconds)
    time.sleep(TRAIL_S)
    after = cpu_ns(target.pid)
    count = done["requests"] * (CHUNKS if case.stream else 1)
    parts: dict[str, float] = {}
    for pid, ns in after.items():
        part = part_of(pid)
        parts[part] = parts.get(part, 0.0) + (ns - before.get(pid, 0)) / count / 1e3
    return parts


def part_of(pid: int) -> str:
    """A process by the module it runs; `main` where it runs none of Headgate's parts."""
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return next((word.rpartition(".")[2] for word in words if word.startswith("gateway.")), "main")


def load(url: str, key: str, case: Case, connections: int, seconds: float) -> dict[str, float]:
    """RuntimeError where any answer was not a 200: a failure is cheap and would flatter."""
    command = [
        sys.executable, "-m", "tests.bench.load", url, "--key", key, "--model", case.model,
        "--connections", str(connections), "--seconds", str(seconds), *(["--stream"] if case.stream else []),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{case.name}: the load broke off: {run.stderr[-500:]}")
    done = json.loads(run.stdout)
    if done["failures"]:
        raise RuntimeError(f"{case.name}: {done['failures']} requests failed: {done['failure']}")
    return dict(done)


def report(
    found: list[Case],
    parts: dict[str, dict[str, list[float]]],
    versions: dict[str, str],
    rounds: int,
    seconds: float,
    words: Sequence[str] | None,
) -> dict[str, object]:
    """Medians over the rounds; ratios are medians of the rounds' own ratios."""
    base = {case.stream: case for case in found if case.target == "reference"}
    rival = {case.stream: case for case in found if case.target == "litellm"}
    direct_ms = statistics.median(parts["direct"]["p50_ms"])
    lines = []
    for case in found:
        times = ratio(rival.get(case.stream), case) if case.target == "headgate" else None
        added = statistics.median(case.p50_ms) - direct_ms if case.p50_ms else None
        lines.append(
            {
                "case": case.name,
                "unit": "chunk" if case.stream else "request",
                "cpu_us": statistics.median(case.cpu_us),
                "over_bare": ratio(case, base[case.stream]),
                "litellm_over_this": times,
                "added_p50_ms": added,
                "by_process_us": {part: statistics.median(us) for part, us in parts[case.name].items()},
                "rounds_us": case.cpu_us,
            }
        )
    command = ["python -m tests.bench", *(sys.argv[1:] if words is None else words)]
    return {
        "command": " ".join(command),
        "machine": machine(),
        "versions": versions,
        "rounds": rounds,
        "seconds": seconds,
        "connections": CONNECTIONS,
        "direct_p50_ms": direct_ms,
        "lines": lines,
    }


def ratio(above: Case | None, below: Case) -> float | None:
    if above is None:
        return None
    return statistics.median(a / b for a, b in zip(above.cpu_us, below.cpu_us, strict=True))


def show(console: Console, result: dict[str, object]) -> None:
    console.print("CPU time per request, or per chunk of a stream: whole process tree, user and system")
    table = Table()
    for title in ("", "CPU-us", "per", "x bare", "LiteLLM", "added ms", "of it"):
        table.add_column(title, justify="left" if title in ("", "per", "of it") else "right", no_wrap=True)
    lines = result["lines"]
    assert isinstance(lines, list)
    for line in lines:
        by_process = line["by_process_us"]
        named = ", ".join(f"{part} {us:.0f}" for part, us in sorted(by_process.items()) if us >= 0.5)
        table.add_row(
            line["case"],
            f"{line['cpu_us']:,.0f}",
            line["unit"],
            f"{line['over_bare']:.1f}",
            f"{line['litellm_over_this']:.0f} x" if line["litellm_over_this"] else "",
            f"{line['added_p50_ms']:.2f}" if line["added_p50_ms"] is not None else "",
            named if len(by_process) > 1 else "",
        )
    console.print(table)
    versions = result["versions"]
    assert isinstance(versions, dict)
    console.print(", ".join(f"{name} {version}" for name, version in versions.items()))
    console.print(f"{result['machine']}")
    console.print(
        f"{result['command']}: {result['rounds']} rounds of {result['seconds']} s per case, "
        f"{result['connections']} connections; LiteLLM: how many times this; added: median latency at one connection"
    )


def own_versions() -> dict[str, str]:
    versions = {"headgate": importlib.metadata.version("headgate"), "python": platform.python_version()}
    return versions | {name: importlib.metadata.version(name) for name in PROGRAMS}


def machine() -> str:
    """Processor, cores and how busy they were."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(": ")[2] for line in info.splitlines() if line.startswith("model name")), "?")
    loads = " ".join(f"{one:.1f}" for one in os.getloadavg())
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, load average {loads}"


class progress:
    """A bar whose text says what is being measured."""

    def __init__(self, console: Console, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, console=console, transient=True)
        self.total = total

    def __enter__(self) -> Callable[[str], None]:
        self.bar.start()
        task = self.bar.add_task("", total=self.total)

        def say(text: str) -> None:
            self.bar.update(task, description=text)
            self.bar.advance(task)

        return say

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


if __name__ == "__main__":
    main()
