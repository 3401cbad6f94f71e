"""`python -m tests.fuzz [--cases 100000]`: bad input to codecs and both ports, and the outcomes as a table."""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.fuzz.codecs import CODECS
from tests.fuzz.ports import Said, Tally, bad_bodies, bad_wire, by_document, ports

SHARES = {"codecs": 0.5, "bodies": 0.38, "wire": 0.12, "document": 0.01}
"""Shares of all cases; those of the OpenAPI documents are for each port."""


def main() -> None:
    """Exit status 1 if any outcome was a fault of the gateway."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    counts = {name: max(1, round(share * chosen.cases)) for name, share in SHARES.items()}
    table, console, faults, total = Table("", "cases", "answers", "faults", "s", box=None), Console(), 0, 0

    def run(name: str, work: Callable[[Tally], None]) -> None:
        nonlocal faults, total
        tally, begun = Tally(), time.monotonic()
        with console.status(name):
            work(tally)
        answers = ", ".join(f"{count} x {status}" for status, count in sorted(tally.statuses.items()) if status)
        table.add_row(name, f"{tally.cases:,}", answers, str(len(tally.faults)), f"{time.monotonic() - begun:.0f}")
        faults, total = faults + len(tally.faults), total + tally.cases
        for fault in tally.faults[:10]:
            console.print(fault, style="red", markup=False)

    for codec in CODECS:
        run(
            f"wire codecs: {codec}",
            lambda tally, codec=codec: codecs(codec, counts["codecs"] // 4, tally, chosen.seed),  # type: ignore[misc]
        )
    with tempfile.TemporaryDirectory() as folder, ports(Path(folder)) as here:
        run("data port: bodies", lambda tally: bad_bodies(here, counts["bodies"], tally, chosen.seed))
        run("data port: raw HTTP", lambda tally: bad_wire(here, counts["wire"], tally, chosen.seed))
        documents = (("data", here.data, here.data_document()), ("admin", here.admin, here.admin_document()))
        for name, app, document in documents:
            run(
                f"{name} port: schemathesis",
                lambda tally, app=app, document=document: by_document(  # type: ignore[misc]
                    here, app, document, counts["document"], tally, chosen.seed
                ),
            )
    console.print(table)
    console.print(f"{total:,} cases, {faults} faults of ours")
    raise SystemExit(bool(faults))


def codecs(name: str, cases: int, tally: Tally, seed: int) -> None:
    for number in range(cases):
        try:
            CODECS[name](random.Random(f"{seed}.{number}"))
        except Exception:
            tally.note(Said(500, traceback.format_exc()[-600:].encode()), f"{name} {seed}.{number}")
        else:
            tally.note(Said(0), "")


if __name__ == "__main__":
    main()
