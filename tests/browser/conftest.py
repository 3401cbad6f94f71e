"""One Chromium and one gateway with traffic, shared by all tests of this folder; each test has a browser context of its
own.

Both are stopped after the last of these tests, because no asyncio test could start while Playwright's event loop runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.browser.stage import MASTER_KEY, PASSWORD, Stage, artifact, running

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
WIDTHS = {"laptop": (1280, 860), "phone": (390, 844)}
WAIT_MS = 60_000
"""On a busy machine pages take long; a shorter timeout saves nothing where they don't."""
expect.set_options(timeout=WAIT_MS)

OpenPage = Callable[..., Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all tests in one process, because they share a browser and a gateway, with a long timeout for busy machines.
    """
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("browser"))
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if not os.path.exists(CHROMIUM):
        pytest.skip("Chromium is not installed; deploy/test-servers.sh installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A gateway with a trained router, traffic, feedback, users, and a second version that is bad."""
    folder = tmp_path_factory.mktemp("stage")
    stage = Stage(folder, router=str(artifact(folder, "first")))
    with running(stage):
        stage.add_users()
        stage.send_traffic(320)
        stage.shipped(320)
        yield stage


class Watch:
    """Errors on a page's console, and requests to other hosts."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def follow(self, page: Page) -> None:
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.faults.append(f"uncaught: {error}"))
        page.on("requestfailed", self._failed)
        page.on("request", self._asked)

    def _asked(self, request: Request) -> None:
        if urlsplit(request.url).hostname not in ("127.0.0.1", None):
            self.faults.append(f"foreign: {request.url}")

    def _failed(self, request: Request) -> None:
        if "ERR_ABORTED" not in (request.failure or ""):  # a refresh was in progress when its page was left
            self.faults.append(f"failed: {request.url} {request.failure}")

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type}: {message.text}")


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def context(browser: Browser) -> Iterator[Callable[..., BrowserContext]]:
    """Makes browser contexts: `theme` is light or dark, `width` laptop or phone. They are closed at the end."""
    made: list[BrowserContext] = []

    def make(theme: str = "light", width: str = "laptop") -> BrowserContext:
        across, down = WIDTHS[width]
        one = browser.new_context(
            viewport={"width": across, "height": down}, color_scheme="dark" if theme == "dark" else "light"
        )
        one.set_default_timeout(WAIT_MS)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


@pytest.fixture
def open_page(context: Callable[..., BrowserContext], stage: Stage, watch: Watch) -> OpenPage:
    """A signed-in page: for one of USERS, or with the master key."""

    def make(path: str = "/", *, user: str = "", on: Stage | None = None, **look: str) -> Page:
        page = context(**look).new_page()
        watch.follow(page)
        base = (on or stage).url
        sign_in(page, base, user)
        if path != "/":
            page.goto(base + path)
        return page

    return make


def sign_in(page: Page, base: str, user: str = "") -> None:
    page.goto(f"{base}/login")
    page.get_by_label("User").fill(user)
    page.get_by_label("Password or master key").fill(PASSWORD if user else MASTER_KEY)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{base}/")
