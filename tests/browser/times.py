"""How long pages take in Chromium on a large journal, and what open dashboards cost those who call the gateway:
`python -m tests.browser.times --journal FILE` (made where it is not there; a million decisions unless told otherwise).

Page times are from the navigation's start to its load event, styles, scripts and fonts included. The first is in a
fresh browser context against a gateway that has just started. The data plane is asked one request after the other,
in turns with and without ten open dashboards that refresh themselves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, Page, sync_playwright

from gateway.journal.store import open_store
from tests.bench.journal import MODELS, PRICES, ROUTES, fill
from tests.browser.conftest import CHROMIUM, FLAGS, sign_in
from tests.browser.stage import AUTH, MASTER_KEY, Stage, running

LOADED_MS = "performance.getEntriesByType('navigation')[0].loadEventEnd"
ANSWERED_MS = "performance.getEntriesByType('navigation')[0].responseEnd"
PAGES = (
    "/", "/?window=hour", "/?window=week", "/?window=month", "/routes", "/routes/auto", "/decisions",
    "/decisions?route=code&outcome=error", "/decisions?tenant=nobody", "/learning", "/certificates", "/cache",
    "/models", "/labels", "/feedback", "/batch", "/keys", "/tenants", "/users", "/audit",
)  # fmt: skip
OPEN = 10
ASKED = 300
TURNS = 4


class Large(Stage):
    """On a journal that speaks of other routes and models than the stage's."""

    journal: Path

    def write_config(self) -> None:
        names = ", ".join(f'"{name}"' for name in MODELS)
        models = "".join(
            f'[[models]]\nname = "{name}"\nprovider = "sim"\ninput_usd_per_mtok = {PRICES[name][0]}\n'
            f"output_usd_per_mtok = {PRICES[name][1]}\n"
            for name in MODELS
        )
        routes = "".join(
            f'[[routes]]\nname = "{name}"\nmodels = [{names}]\nexplore = 0.2\ncost_weight = 0.5\n' for name in ROUTES
        )
        self.config.write_text(
            f"[server]\nport = {self.port}\nadmin_port = {self.admin_port}\nworkers = 1\n"
            f'run_dir = "{self.folder}/run"\n'
            f'[storage]\nurl = "sqlite:///{self.journal}"\nkeep_days = 400\n[telemetry]\nlog_level = "warning"\n'
            f'[[providers]]\nname = "sim"\nkind = "scripted"\n{models}{routes}[auth]\nmaster_key = "{MASTER_KEY}"\n'
        )


def page_times(browser: Browser, stage: Stage, again: int) -> dict[str, Any]:
    """Milliseconds: of the very first page, then of each page the first time and the median of the later ones."""
    page = browser.new_context().new_page()
    sign_in(page, stage.url)
    first = loaded(page, stage.url + "/")
    rows = {}
    for path in PAGES:
        once = loaded(page, stage.url + path)
        later = [loaded(page, stage.url + path) for _ in range(again)]
        rows[path] = {
            "first_ms": once[0], "load_ms": statistics.median(one[0] for one in later),
            "answer_ms": statistics.median(one[1] for one in later),
        }  # fmt: skip
    page.context.close()
    return {"very_first_ms": first[0], "pages": rows}


def loaded(page: Page, url: str) -> tuple[float, float]:
    answer = page.goto(url)
    assert answer is not None and answer.status == 200, url
    page.wait_for_function(f"{LOADED_MS} > 0")
    return float(page.evaluate(LOADED_MS)), float(page.evaluate(ANSWERED_MS))


def data_plane(browser: Browser, stage: Stage) -> dict[str, dict[str, float]]:
    """Milliseconds per request without and with ten dashboards open, in turns."""
    taken: dict[str, list[float]] = {"alone": [], "ten dashboards": []}
    with httpx.Client(base_url=stage.api, headers=AUTH, timeout=30) as client:
        ask(client, 100)
        for _ in range(TURNS):
            taken["alone"] += ask(client, ASKED)
            contexts = [browser.new_context() for _ in range(OPEN)]
            for context, path in zip(contexts, PAGES * 2, strict=False):
                page = context.new_page()
                sign_in(page, stage.url)
                page.goto(stage.url + path)
            time.sleep(3)
            taken["ten dashboards"] += ask(client, ASKED)
            for context in contexts:
                context.close()
    return {name: told(values) for name, values in taken.items()}


def ask(client: httpx.Client, times: int) -> list[float]:
    body = {"model": "auto", "messages": [{"role": "user", "content": "How are you?"}]}
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        client.post("/chat/completions", json=body).raise_for_status()
        taken.append((time.perf_counter() - begun) * 1000)
        time.sleep(0.01)
    return taken


def told(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100)
    return {"p50_ms": cuts[49], "p95_ms": cuts[94], "p99_ms": cuts[98]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.browser.times", description=__doc__)
    parser.add_argument("--journal", type=Path, default=None)
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--again", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        stage = Large(Path(name))
        stage.journal = chosen.journal or Path(name) / "journal.db"
        if not stage.journal.exists():
            store = open_store(f"sqlite:///{stage.journal}")
            fill(store, chosen.decisions)
            store.close()
        with running(stage):
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            report = {**page_times(browser, stage, chosen.again), "data_plane": data_plane(browser, stage)}
            browser.close()
    if chosen.json:
        print(json.dumps(report))
        return
    print(f"the very first page: {report['very_first_ms']:.0f} ms")
    print(f"{'':40}{'first':>8}{'later':>8}{'answer':>8}  ms")
    for path, row in report["pages"].items():
        print(f"{path:40}{row['first_ms']:8.0f}{row['load_ms']:8.0f}{row['answer_ms']:8.0f}")
    for name, row in report["data_plane"].items():
        print(f"data plane, {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
