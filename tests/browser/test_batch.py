"""A batch job from its plan to its results, and one that is paused, resumed and cancelled."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, Watch
from tests.browser.stage import Stage, eventually
from tests.gateway.learn.world import Town


def prompts(folder: Path, count: int) -> Path:
    town, path = Town(31), folder / "questions.jsonl"
    path.write_text("".join(json.dumps({"prompt": town.question()[1]}) + "\n" for _ in range(count)))
    return path


def test_a_job_is_planned_started_and_its_answers_are_shown(
    stage: Stage, open_page: OpenPage, watch: Watch, tmp_path: Path
) -> None:
    """The frontier comes first, and nothing is spent; then the job runs, and each answer links to its decision."""
    before = len(stage.admin("GET", "/admin/batches")["data"])
    page = open_page("/batch", user="otto")
    page.get_by_label("Prompts").set_input_files(prompts(tmp_path, 30))
    page.get_by_label("Budget, $").fill("0.5")
    page.get_by_role("button", name="Plan it").click()
    expect(page.get_by_role("button", name="Start the job")).to_be_visible()
    assert page.get_by_role("region", name="What budgets would buy").locator("tbody tr").count() >= 3
    assert page.locator("main").inner_text().count("Nothing has been spent") == 1
    assert len(stage.admin("GET", "/admin/batches")["data"]) == before
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url(re.compile(r"/batch/batch_\w+$"))
    expect(page.locator("dl.stats .badge")).to_have_text("completed")
    id = page.url.rsplit("/", 1)[1]
    told = stage.admin("GET", f"/admin/batches/{id}")
    assert told["done"] == 30 and 0 < told["spent_usd"] <= 0.5
    page.goto(page.url)
    rows = page.get_by_role("region", name="Answers").locator("tbody tr")
    assert rows.count() == 30
    with page.expect_download() as saved:
        page.get_by_role("link", name="Download all answers").click()
    lines = saved.value.path().read_text().splitlines()
    assert len(lines) == 30 and all(json.loads(line)["response"]["status_code"] == 200 for line in lines)
    rows.first.get_by_role("link").click()
    expect(page.get_by_text("The plan of a batch job assigned it to")).to_be_visible()
    assert watch.faults == []


def test_a_job_is_paused_resumed_and_cancelled(stage: Stage, open_page: OpenPage) -> None:
    """Paused, it spends nothing more; resumed, it continues; cancelled, it ends and keeps its answers."""
    plan = stage.plan(600, route="late")
    id = stage.admin("POST", f"/admin/plans/{plan}/begin", json={})["id"]

    def state() -> Any:
        return stage.admin("GET", f"/admin/batches/{id}")

    eventually(lambda: state()["done"] > 0)
    page = open_page(f"/batch/{id}", user="otto")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Pause").last.click()
    expect(page.locator("#said")).to_contain_text("The job pauses")
    eventually(lambda: state()["in_flight"] == 0 and state()["wish"] == "pause")
    page.reload()
    rested = state()["done"]
    assert 0 < rested < 600
    page.get_by_role("button", name="Resume").last.click()
    expect(page.locator("#said")).to_contain_text("The job continues")
    eventually(lambda: state()["done"] > rested)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#said")).to_contain_text("is being cancelled")
    eventually(lambda: state()["state"] == "cancelled")
    page.reload()
    expect(page.locator("dl.stats .badge")).to_have_text("cancelled")
    assert page.get_by_role("button", name="Cancel").count() == 0
    assert page.get_by_role("region", name="Answers").locator("tbody tr").count() == 50
    done = [row["action"] for row in stage.admin("GET", "/admin/audit", params={"limit": 50})]
    assert {"batch.begin", "batch.pause", "batch.resume", "batch.cancel"} <= set(done)


def test_an_invalid_plan_is_refused_in_place(stage: Stage, open_page: OpenPage, tmp_path: Path) -> None:
    """These are a missing file, an invalid length of time, and bad lines one by one; a viewer has no form."""
    page = open_page("/batch", user="otto")
    page.get_by_role("button", name="Plan it").click()
    expect(page.locator("#plan-form .problem")).to_contain_text("no prompt")
    page.get_by_label("Deadline").fill("soon")
    page.get_by_label("Prompts").set_input_files(prompts(tmp_path, 2))
    page.get_by_role("button", name="Plan it").click()
    expect(page.locator("#plan-form .problem")).to_contain_text("write 12h, 90m")
    assert page.get_by_label("Deadline").get_attribute("aria-invalid") == "true"
    page.get_by_label("Deadline").fill("90m")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "well"}\nnot json\n')
    page.get_by_label("Prompts").set_input_files(bad)
    page.get_by_role("button", name="Plan it").click()
    expect(page.locator("main [role=alert]").filter(has_text="be run like this")).to_be_visible()
    assert "line 2" in page.locator("main").inner_text()
    page.get_by_role("button", name="Delete this plan").click()
    page.wait_for_url(f"{stage.url}/batch")
    looks = open_page("/batch", user="vera")
    assert looks.get_by_role("button", name="Plan it").count() == 0
