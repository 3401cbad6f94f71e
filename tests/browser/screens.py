"""The pictures in the documentation: `python -m tests.browser.screens [FOLDER]`.

A gateway has a day of decisions in its journal, made by a trained router on the town's questions, and live traffic on
top. Every figure on the pictures is computed from those records.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from math import cos, pi
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from gateway.journal.record import FeedbackRecord, Record
from gateway.journal.store import open_store
from gateway.journal.write import write_records
from routers.registry import open_router
from routers.types import Knobs
from tests.browser.conftest import CHROMIUM, FLAGS, WIDTHS, sign_in
from tests.browser.stage import Stage, artifact, running
from tests.gateway.learn.world import Town

FOLDER = Path("gateway/dashboard/docs")
DAY_S = 86400.0
TENANTS = ("shop", "support", "research")


def fill_journal(stage: Stage, count: int, days: float, seed: int = 11) -> None:
    """Decisions of the last days, more by day than by night, three quarters of them scored."""
    store = open_store(f"sqlite:///{stage.folder}/journal.db")
    rng = np.random.default_rng(seed)
    now_s = time.time() - 30
    at = np.sort(rng.random(4 * count))
    kept = at[rng.random(len(at)) < 0.55 - 0.4 * np.array([cos(2 * pi * days * x) for x in at])][:count]
    rows = Town(seed).decisions(open_router(stage.router, explore=0.2), len(kept), knobs=Knobs(cost_weight=0.5),
                                labelled=0.75)  # fmt: skip
    for start in range(0, len(rows), 500):
        records: list[Record] = []
        for (record, score), place in zip(rows[start : start + 500], kept[start : start + 500], strict=True):
            time_s = now_s - float(1 - place / kept[-1]) * days * DAY_S
            took_s = (record.latency_s or 0.3) * float(rng.lognormal(0, 0.35))
            tenant = str(rng.choice(TENANTS, p=(0.6, 0.3, 0.1)))
            made = msgspec.structs.replace(
                record, time_s=time_s, tenant=tenant, latency_s=took_s, ttft_s=took_s * 0.3, overhead_ms=0.4,
                cache="off", status=200 if rng.random() > 0.004 else 502,
            )  # fmt: skip
            records.append(made)
            if score is not None:
                said = FeedbackRecord(id=f"fb_{record.id}", time_s=time_s + 5, tenant=tenant, decision_id=record.id,
                                      score=score)  # fmt: skip
                records.append(said)
        with store.engine.begin() as connection:
            write_records(connection, records)
    store.close()


class Camera:
    """Takes pictures of pages as a user sees them."""

    def __init__(self, browser: Browser, stage: Stage, folder: Path) -> None:
        self.browser, self.stage, self.folder = browser, stage, folder

    def page(self, theme: str = "light", width: str = "laptop", down: int = 0) -> Page:
        across, usual = WIDTHS[width]
        context = self.browser.new_context(
            viewport={"width": across, "height": down or usual}, color_scheme="dark" if theme == "dark" else "light"
        )
        page = context.new_page()
        sign_in(page, self.stage.url)
        return page

    def take(self, page: Page, name: str, path: str = "", *, whole: bool = False) -> None:
        if path:
            page.goto(self.stage.url + path)
        page.wait_for_load_state("networkidle")
        page.evaluate("document.fonts.ready")
        path_of = self.folder / f"{name}.png"
        page.screenshot(path=path_of, full_page=whole)
        with Image.open(path_of) as seen:  # a palette takes a third of the bytes, and the colours are flat
            few = seen.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            few.save(path_of, optimize=True)


def shoot(camera: Camera, decision: str, plan: str) -> None:
    page = camera.page()
    for name, path in (
        ("overview", "/?window=day"), ("decision", f"/decisions/{decision}"), ("batch", f"/batch/plans/{plan}"),
    ):  # fmt: skip
        camera.take(page, name, path)
    dark = camera.page("dark", down=1240)
    dark.goto(f"{camera.stage.url}/routes/auto")
    with dark.expect_response(lambda answer: "/effect?" in answer.url):
        dark.locator("#cost_weight").fill("0.8")
    camera.take(dark, "route")
    camera.take(camera.page("dark", "phone"), "phone", "/?window=day")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        stage = Stage(Path(name))
        stage = replace(stage, router=str(artifact(stage.folder, "first")))
        fill_journal(stage, 9000, 2.4)
        with running(stage):
            stage.add_users()
            stage.add_version(artifact(stage.folder, "second"))
            stage.send_traffic(120)
            for _ in range(6):
                stage.ask("What is the capital of France?", model="kept")
            poem = stage.ask("Write a wistful poem of 6 lines about the last train.")
            stage.shipped(1000)
            for path in ("/admin/routes/auto/frontier", "/admin/learning/auto/refresh"):
                stage.admin("POST", path)
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            plan = stage.plan(400, budget_usd=0.15)
            shoot(Camera(browser, stage, folder), poem.headers["x-headgate-decision-id"], plan)
            browser.close()


if __name__ == "__main__":
    main()
