"""How long the dashboard's questions take on a large journal: `python -m tests.bench.dashboard [--decisions N]`.

Prints, for each page's function, the first call and the median of five, by the clock and in CPU time; and every
statement that walks through a whole table, of which there must be none. `--keep FILE` keeps the journal for the next
run.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gateway.admin import (
    audit,
    cache,
    certificates,
    decisions,
    keys,
    knobs,
    labels,
    learning,
    models,
    overview,
    tenants,
)
from gateway.admin.actor import Actor
from gateway.admin.rounds import forget
from gateway.admin.services import AdminServices
from gateway.admin.shapes.knobs import Knobs
from gateway.admin.upkeep import Seen, check_up
from gateway.config.types import Config, ModelConfig, ProviderConfig, RouteConfig, Secret, Server, Storage
from gateway.journal.search import DecisionFilter
from gateway.journal.ship import ShipState
from gateway.journal.store import open_store
from tests.bench.journal import MODELS, PRICES, ROUTES, fill

LARGE = ("decisions", "feedback", "responses", "stats", "spend")
"""Tables that grow with the traffic; `rollups` does with the time alone."""
COLUMNS = ("first_ms", "first_cpu_ms", "ms", "cpu_ms")
WHO = Actor("bench", "admin")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.dashboard", description=__doc__)
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = args.keep or Path(folder) / "journal.db"
        admin, filled_s = opened(file, Path(folder), args.decisions)
        report = measured(admin)
        if args.json:
            print(json.dumps({"decisions": args.decisions, "filled_s": filled_s, **report}))
            return
        print(f"{args.decisions} decisions, {file.stat().st_size / 1e9:.2f} GB; written in {filled_s:.0f} s")
        print(f"{'':34} {'first':>10} {'(CPU)':>10} {'median':>10} {'(CPU) ms':>10}")
        for name, row in report["pages"].items():
            print(f"{name:34} " + " ".join(f"{row[column]:10.1f}" for column in COLUMNS))
        print("in the background:", ", ".join(f"{name} {ms:.0f} ms" for name, ms in report["background"].items()))
        print("whole tables read:", "; ".join(report["scans"]) or "none")


def opened(file: Path, folder: Path, count: int) -> tuple[AdminServices, float]:
    """A admin on a journal of so many decisions, written where it isn't there yet; the seconds that took."""
    fresh = not file.exists()
    store = open_store(f"sqlite:///{file}")
    began = time.perf_counter()
    if fresh:
        fill(store, count)
    admin = AdminServices(configured(file, folder), store, ShipState(), opened=True)
    return admin, time.perf_counter() - began


def configured(file: Path, folder: Path) -> Config:
    """The routes and models that the journal speaks of."""
    return Config(
        server=Server(run_dir=str(folder / "run")), storage=Storage(url=Secret(f"sqlite:///{file}")),
        providers=[ProviderConfig(name="sim", kind="scripted")],
        models=[
            ModelConfig(name=name, provider="sim", input_usd_per_mtok=PRICES[name][0],
                        output_usd_per_mtok=PRICES[name][1])
            for name in MODELS
        ],
        routes=[RouteConfig(name=name, models=list(MODELS), explore=0.2, cost_weight=0.5) for name in ROUTES],
    )  # fmt: skip


def questions(admin: AdminServices) -> dict[str, Callable[[], Any]]:
    """What pages ask."""
    some = decisions.search(admin, DecisionFilter(), limit=3).data[-1].id
    middle_s = time.time() - 15 * 86400
    asked: dict[str, Callable[[], Any]] = {
        **{f"overview, {window}": _anew(admin, window) for window in overview.LENGTH_S},
        "overview, week, one route": _anew(admin, "week", route="code"),
        "overview, week, one tenant": _anew(admin, "week", tenant="acme"),
        "routes": lambda: knobs.route_cards(admin),
        "route": lambda: knobs.route_detail(admin, "auto"),
        "preview of a knob": lambda: knobs.preview(admin, "auto", Knobs(cost_weight=0.8)),
        "decisions": lambda: decisions.search(admin, DecisionFilter()),
        "decisions, one route": lambda: decisions.search(admin, DecisionFilter(route="code")),
        "decisions, a tenant that isn't": lambda: decisions.search(admin, DecisionFilter(tenant="nobody")),
        "decisions, errors of one model": lambda: decisions.search(
            admin, DecisionFilter(answered_model="large", outcome="error")
        ),
        "decisions, dearer than any": lambda: decisions.search(admin, DecisionFilter(min_cost_usd=9.0)),
        "decisions, explored, long ago": lambda: decisions.search(
            admin, DecisionFilter(outcome="explored", until_s=middle_s, tenant="hooli")
        ),
        "decisions, what may be asked for": lambda: decisions.facets(admin),
        "one decision": lambda: decisions.explain(admin, some, WHO),
        "one decision that isn't": lambda: _missing(admin),
        "learning": lambda: learning.learning(admin),
        "certificates": lambda: certificates.certificates(admin),
        "cache": lambda: cache.summary(admin, "week"),
        "models": lambda: models.fleet(admin),
        "keys": lambda: keys.key_rows(admin),
        "tenants": lambda: tenants.tenants(admin),
        "limits": lambda: tenants.route_limits(admin),
        "labels": lambda: labels.queue(admin, WHO),
        "feedback": lambda: labels.feedback(admin),
        "feedback of a week": lambda: labels.feedback_summary(admin),
        "audit": lambda: audit.audit_log(admin),
    }
    return asked


def measured(admin: AdminServices) -> dict[str, Any]:
    """Milliseconds per question, first and median, and what reads whole tables."""
    background = {}
    for route in ROUTES:
        began = time.perf_counter()
        check_up(admin, route, Seen())
        background[f"looking over {route}"] = (time.perf_counter() - began) * 1e3
    began = time.perf_counter()
    knobs.refresh_frontier(admin, "auto")
    background["a frontier"] = (time.perf_counter() - began) * 1e3
    pages = {}
    with watched(admin.store.engine) as statements:
        for name, ask in questions(admin).items():
            first, *rest = [_ms(ask) for _ in range(6)]
            wall, cpu = (statistics.median(each) for each in zip(*rest, strict=True))
            pages[name] = {"first_ms": first[0], "first_cpu_ms": first[1], "ms": wall, "cpu_ms": cpu}
    return {"pages": pages, "background": background, "scans": scans(admin, statements)}


@contextmanager
def watched(engine: sa.Engine) -> Iterator[dict[str, Any]]:
    """Every statement that is executed meanwhile, with one set of its parameters."""
    statements: dict[str, Any] = {}
    lock = threading.Lock()

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        with lock:
            statements.setdefault(statement, parameters)

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def scans(admin: AdminServices, statements: dict[str, Any]) -> list[str]:
    """Statements whose plan walks through a large table from end to end, by SQLite's own word."""
    found = []
    file = str(admin.config.storage.url).removeprefix("sqlite:///")
    with sqlite3.connect(file) as connection:
        for statement, parameters in statements.items():
            if not statement.lstrip().upper().startswith("SELECT"):
                continue
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            found += [f"{step} <- {statement[:160]}" for step in plan if walks(step, statement)]
    return found


def walks(step: str, statement: str) -> bool:
    """A scan of a large table; one in the order of an index that a limit cuts off is none."""
    word, _, rest = step.partition(" ")
    if word != "SCAN" or rest.split(" ")[0] not in LARGE:
        return False
    return "LIMIT" not in statement or "USING" not in rest


def _anew(admin: AdminServices, window: Any, **filters: str) -> Callable[[], Any]:
    """Not the answer of a moment ago."""

    def ask() -> None:
        forget(admin, "overview")
        overview.overview(admin, window, **filters)

    return ask


def _missing(admin: AdminServices) -> None:
    from gateway.errors import NotFound

    try:
        decisions.explain(admin, "dec_nowhere", WHO)
    except NotFound:
        return
    raise AssertionError("found what isn't there")


def _ms(ask: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU."""
    began, worked = time.perf_counter(), time.process_time()
    ask()
    return (time.perf_counter() - began) * 1e3, (time.process_time() - worked) * 1e3


if __name__ == "__main__":
    main()
