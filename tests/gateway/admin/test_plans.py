from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import httpx
import pytest

from gateway.admin import batch, plans, results
from gateway.admin.actor import Actor
from gateway.admin.changes import DatabaseAway
from gateway.admin.services import AdminServices
from gateway.admin.shapes.batch import BatchPlan, PlanRun, PlanWanted
from gateway.batch.files import Files
from gateway.batch.jobs import Jobs
from gateway.errors import CallerError, NotFound, TooLarge
from gateway.journal.store import open_store
from gateway.journal.tables import job_items
from tests.until import PATIENCE_S

ANN = Actor("ann", "operator")


def lines(count: int) -> str:
    return "".join(json.dumps({"prompt": f"What is {n} + {n}?"}) + "\n" for n in range(count))


def planned(admin: AdminServices, **wanted: object) -> BatchPlan:
    """A plan, once planning has ended."""
    made = plans.make_plan(admin, ANN, PlanWanted.model_validate({"prompts": lines(20), **wanted}))
    assert made.state == "planning"
    deadline = time.monotonic() + PATIENCE_S
    while (found := plans.plan(admin, made.id)).state == "planning":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_a_plan_shows_what_budgets_buy_before_anything_is_spent(admin: AdminServices) -> None:
    """It has a frontier with intervals, on which more expensive points are better; no job, file or call is made."""
    found = planned(admin, name="sums.jsonl", budget_usd=0.01)
    assert (found.state, found.prompts, found.name, found.actor) == ("ready", 20, "sums.jsonl", "ann")
    assert found.chosen is not None and found.chosen.cost_usd.value <= 0.01
    cost = [one.cost_usd.value for one in found.frontier]
    worth = [one.quality.value for one in found.frontier]
    assert len(cost) > 2 and cost == sorted(cost) and worth == sorted(worth)
    assert all(one.quality.low <= one.quality.value <= one.quality.high for one in found.frontier)
    assert [one.id for one in plans.plans(admin)] == [found.id]
    assert batch.batch_page(admin).data == [] and Files(admin.store.engine).page("default") == []


def test_a_plan_that_finishes_while_it_is_read_was_not_interrupted(
    admin: AdminServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored plan may still be marked as being planned although its planner has just ended."""
    made = plans.make_plan(admin, ANN, PlanWanted.model_validate({"prompts": lines(20)}))
    at_work = [one for one in threading.enumerate() if one.name == made.id]
    read_bytes = Path.read_bytes

    def read_slowly(path: Path) -> bytes:
        found = read_bytes(path)
        for one in at_work:
            if path.name == plans.CARD and one is not threading.current_thread():
                one.join()
        return found

    monkeypatch.setattr(Path, "read_bytes", read_slowly)
    assert plans.plan(admin, made.id).problem == ""
    assert plans.plan(admin, made.id).state == "ready"


def test_a_started_plan_becomes_a_job_with_its_prediction(admin: AdminServices) -> None:
    """The job has the plan's terms, the chosen budget and who started it; it is no longer listed as a plan."""
    found = planned(admin, min_quality=0.2, deadline_s=3600)
    job = plans.begin(admin, ANN, found.id, PlanRun(budget_usd=0.5))
    assert (job.state, job.budget_usd, job.total, job.tenant) == ("validating", 0.5, 20, "default")
    assert job.deadline_s is not None and plans.plans(admin) == []
    card = Jobs(admin.store.engine).find(job.id).card
    assert b"".join(Files(admin.store.engine).read(card.input_file)).decode() == lines(20)
    assert card.floor == 0.2 and (kept := plans.predicted(Path(card.folder))) is not None
    assert found.chosen is not None and plans.point(kept.chosen) == found.chosen
    assert admin.store.audit_log()[0]["action"] == "batch.begin"
    with pytest.raises(NotFound):
        plans.begin(admin, ANN, found.id, PlanRun())


def test_a_plan_can_be_started_again_if_its_job_could_not_be_made(admin: AdminServices) -> None:
    """While the database is away no job is started, and the same plan can be started later."""
    found = planned(admin)
    file = Path(str(admin.config.storage.url).removeprefix("sqlite:///"))
    admin.store.engine.dispose()
    file.rename(file.with_suffix(".gone"))
    file.mkdir()
    with pytest.raises(DatabaseAway):
        plans.begin(admin, ANN, found.id, PlanRun())
    file.rmdir()
    file.with_suffix(".gone").rename(file)
    assert plans.begin(admin, ANN, found.id, PlanRun()).total == 20


def test_a_plan_that_cannot_run_says_why(admin: AdminServices) -> None:
    """Bad lines are listed one by one, and too small a budget has the least that would do; the plan can't be started.
    """
    bad = planned(admin, prompts='{"prompt": "well"}\nnot json\n{"prompt": 3}\n')
    assert bad.state == "refused" and len(bad.problems) == 2 and "line 2" in bad.problems[0]
    with pytest.raises(CallerError, match="refused"):
        plans.begin(admin, ANN, bad.id, PlanRun())
    unfunded = planned(admin, budget_usd=1e-9)
    assert unfunded.state == "refused" and unfunded.least_budget_usd is not None and unfunded.least_budget_usd > 1e-9
    assert planned(admin, prompts='{"prompt": "well"}\nnot json\n', skip_bad=True).prompts == 1


def test_an_invalid_plan_is_refused_at_once(admin: AdminServices) -> None:
    """These are an unknown route, a file without prompts, too large a file, and an id that is a path."""
    for wanted, fault in (
        ({"route": "nowhere"}, NotFound), ({"prompts": " \n"}, CallerError), ({"prompts": "x" * (33 << 20)}, TooLarge),
    ):  # fmt: skip
        with pytest.raises(fault):
            plans.make_plan(admin, ANN, PlanWanted.model_validate({"prompts": lines(1), **wanted}))
    for id in ("../run", "plan_0", "..", ""):
        with pytest.raises(NotFound):
            plans.plan(admin, id)


def test_interrupted_deleted_and_old_plans_are_removed(admin: AdminServices) -> None:
    """A plan whose gateway ended is refused, and a month-old one is removed with the next plan."""
    found = planned(admin)
    folder = admin.run_dir / plans.FOLDER / found.id
    text = (folder / plans.CARD).read_text().replace('"ready"', '"planning"')
    (folder / plans.CARD).write_text(text)
    assert plans.plan(admin, found.id).problem == plans.BROKEN_OFF
    plans.drop(admin, ANN, found.id)
    assert not folder.exists()
    old = planned(admin)
    os.utime(admin.run_dir / plans.FOLDER / old.id, (1.0, 1.0))
    assert [one.id for one in (planned(admin), *plans.plans(admin))].count(old.id) == 0


def test_a_jobs_results_are_listed_by_prompt(admin: AdminServices) -> None:
    """They are in the input's order, by the page, with model, cost and decision; a missing file is not found."""
    job = plans.begin(admin, ANN, planned(admin).id, PlanRun())
    rows = [
        {"job": job.id, "place": place, "state": "done", "tries": 1, "worst_nanousd": 0, "cost_nanousd": 1000 * place,
         "decision_id": f"dec_{place}", "model": "small", "status": 200, "time_s": 1.0, "answer": b"{}"}
        for place in range(5)
    ]  # fmt: skip
    with open_store(admin.config.storage.url).engine.begin() as connection:
        connection.execute(job_items.insert(), rows)
    first = results.answers(admin, job.id, limit=3)
    assert [one.place for one in first.data] == [0, 1, 2] and first.next == 2
    rest = results.answers(admin, job.id, after=2, limit=3)
    assert [one.decision_id for one in rest.data] == ["dec_3", "dec_4"] and rest.next is None
    assert rest.data[1].cost_usd == pytest.approx(4e-6)
    with pytest.raises(NotFound, match="no file of answers"):
        results.lines(admin, job.id, "answers")


async def test_the_whole_way_can_be_scripted(client: httpx.AsyncClient) -> None:
    """A plan is made, read and started over the admin API; invalid values are refused by name."""
    wrong = await client.post("/admin/plans", json={"prompts": lines(2), "min_quality": 2})
    assert wrong.status_code == 422 and wrong.json()["error"]["param"] == "min_quality"
    made = (await client.post("/admin/plans", json={"prompts": lines(3)})).json()
    deadline = time.monotonic() + PATIENCE_S
    while (found := (await client.get(f"/admin/plans/{made['id']}")).json())["state"] == "planning":
        assert time.monotonic() < deadline
    assert found["state"] == "ready", found
    begun = await client.post(f"/admin/plans/{made['id']}/begin", json={"budget_usd": 1})
    assert begun.status_code == 201
    told = (await client.get(f"/admin/batches/{begun.json()['id']}/prompts")).json()
    assert told == {"data": [], "next": None}
    assert (await client.delete(f"/admin/plans/{made['id']}")).status_code == 404
