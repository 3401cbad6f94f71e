"""Batch jobs planned from the dashboard: what each budget would buy is shown before a cent is spent, then one is begun.

A plan is made in a thread of its own, on one core. It lies in the run folder until it is begun, dropped or a month old;
of one that was begun what was predicted stays, so that the job's page can show it. The job itself is planned again by
the worker that takes it, from the same prompts: routers may have changed since.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from math import inf, isfinite
from pathlib import Path
from typing import Any

import msgspec
from fastapi import APIRouter

from gateway.admin.actor import Actor
from gateway.admin.batch import BatchJob
from gateway.admin.changes import database
from gateway.admin.guard import Operator, Services, Viewer
from gateway.admin.rounds import route_of
from gateway.admin.services import AdminServices
from gateway.admin.shapes.batch import BatchPlan, PlanPoint, PlanRun, PlanWanted
from gateway.admin.shapes.common import Interval
from gateway.batch.files import Files
from gateway.batch.jobs import Card, Job, Jobs
from gateway.batch.types import PLAN_FILE, BadJob, Impossible, Point
from gateway.batch.view import job_view
from gateway.errors import CallerError, HeadgateError, NotFound, TooLarge
from gateway.journal.record import new_id
from gateway.keys import ANYONE, MASTER
from gateway.settings import read_settings
from routers.cores import one_core

log = logging.getLogger("headgate.plans")
router = APIRouter(prefix="/admin/plans", tags=["batches"])

FOLDER, CARD, INPUT = "drafts", "draft.json", "input.jsonl"
BEGUN = "begun.json"
"""The card while its job is being made: of two who begin a plan at once, one finds it gone."""
KEPT_S = 30 * 86400.0
SHOWN_PROBLEMS = 20
FAILED = "planning failed inside the gateway; its log says why"
BROKEN_OFF = "the gateway ended while it was being planned; plan it again"


class Predicted(msgspec.Struct):
    """What of plan.json is shown; the rest is not read."""

    frontier: tuple[Point, ...]
    chosen: Point


def predicted(folder: Path) -> Predicted | None:
    """None: it was planned on another machine, or is gone."""
    try:
        return msgspec.json.decode((folder / PLAN_FILE).read_bytes(), type=Predicted)
    except (OSError, msgspec.MsgspecError):
        return None


def plans(services: AdminServices) -> list[BatchPlan]:
    """Those that were not begun, newest first."""
    found = [_read(path.parent) for path in _folder(services).glob(f"*/{CARD}")]
    return sorted((one for one in found if one is not None), key=lambda one: -one.time_s)


def plan(services: AdminServices, id: str) -> BatchPlan:
    """Raises NotFound."""
    found = _read(_place(services, id))
    if found is None:
        raise NotFound(f"no plan has the id {id!r}")
    return found


def make_plan(services: AdminServices, who: Actor, wanted: PlanWanted) -> BatchPlan:
    """At once, in the state `planning`. Raises CallerError, NotFound or TooLarge."""
    route_of(services, wanted.route)
    prompts, most = wanted.prompts.encode(), services.config.server.max_body_bytes
    if not prompts.strip():
        raise CallerError("there is no prompt in it", status=422, param="prompts")
    if len(prompts) > most:
        raise TooLarge(f"the prompts have {len(prompts):,} bytes, more than max_body_bytes ({most:,}): use the command")
    _drop_old(services)
    stated = wanted.model_dump(exclude={"prompts"})
    draft = BatchPlan(id=new_id("plan"), state="planning", actor=who.name, time_s=time.time(), **stated)
    folder = _folder(services) / draft.id
    folder.mkdir(parents=True)
    (folder / INPUT).write_bytes(prompts)
    _write(folder, draft)
    threading.Thread(target=_work, args=(services, draft, folder), name=draft.id, daemon=True).start()
    return draft


def begin(services: AdminServices, who: Actor, id: str, wanted: PlanRun) -> BatchJob:
    """A job that a worker takes within seconds. Raises NotFound, or CallerError where the plan isn't ready.

    Once only: a plan that was begun is no plan any more. It is one again where the database was away.
    """
    draft, folder = plan(services, id), _place(services, id)
    if draft.state != "ready":
        raise CallerError(f"the plan is {draft.state}", code="not_ready", status=409)
    try:
        (folder / CARD).rename(folder / BEGUN)
    except FileNotFoundError:
        raise NotFound(f"somebody else has begun or dropped the plan {id!r}") from None
    try:
        with database():
            job = _job(services, draft, folder, wanted.budget_usd)
    except BaseException:
        (folder / BEGUN).rename(folder / CARD)
        raise
    for name in (BEGUN, INPUT):
        (folder / name).unlink(missing_ok=True)
    with database():
        services.store.note(who.name, "batch.begin", job.id, {"plan": id, "budget_usd": wanted.budget_usd})
    return BatchJob(**job_view(job))


def _job(services: AdminServices, draft: BatchPlan, folder: Path, budget_usd: float | None) -> Job:
    now, config = time.time(), services.current
    caller = MASTER if str(config.auth.master_key) else ANYONE
    with (folder / INPUT).open("rb") as lines:
        file = Files(services.store.engine).add(caller.tenant, "batch", draft.name, lines, now, expires_s=now + KEPT_S)
    card = Card(
        source=draft.name, route=draft.route, key_id=caller.key_id, folder=str(folder.resolve()),
        budget_usd=budget_usd, deadline_s=now + draft.deadline_s if draft.deadline_s else None,
        concurrency=config.server.batch_concurrency, skip_bad=draft.skip_bad, floor=draft.min_quality,
        input_file=file.id, total=draft.prompts + draft.repeats,
    )  # fmt: skip
    return Jobs(services.store.engine).add(caller.tenant, "api", card, now)


def drop(services: AdminServices, who: Actor, id: str) -> None:
    """It cost nothing. Raises NotFound."""
    plan(services, id)
    shutil.rmtree(_place(services, id), ignore_errors=True)


def point(one: Point) -> PlanPoint:
    """As pages and programs see it."""
    cost, worth = one.cost_usd, one.quality
    return PlanPoint(
        budget_usd=one.budget_usd if isfinite(one.budget_usd) else None, calls=dict(one.calls),
        cost_usd=Interval(value=cost.value, low=cost.low, high=cost.high),
        quality=Interval(value=worth.value, low=worth.low, high=worth.high),
    )  # fmt: skip


def _work(services: AdminServices, draft: BatchPlan, folder: Path) -> None:
    try:
        with one_core():
            found = _planned(services, draft, folder)
    except (HeadgateError, OSError) as fault:
        found = _refused(fault)
    except Exception:  # whoever waits for it must hear something
        log.exception("%s failed", draft.id)
        found = {"state": "refused", "problem": FAILED}
    if folder.exists():  # else it was dropped meanwhile
        _write(folder, draft.model_copy(update=found))


def _planned(services: AdminServices, draft: BatchPlan, folder: Path) -> dict[str, Any]:
    from gateway.app import open_book
    from gateway.batch.context import open_context
    from gateway.batch.plan import PlanOptions, plan_job
    from gateway.batch.read import ReadOptions

    config = services.current
    server = config.server
    reading = ReadOptions(
        draft.route, draft.min_quality, max_messages=server.max_messages, max_body_bytes=server.max_body_bytes
    )
    options = PlanOptions(
        reading=reading, budget_usd=draft.budget_usd, deadline_s=draft.deadline_s or inf, skip_bad=draft.skip_bad,
        cascade=True, concurrency=server.batch_concurrency, kind="jsonl",
    )  # fmt: skip
    context = open_context(config, open_book(config, read_settings(server.run_dir)))
    made = plan_job(folder / INPUT, folder, options, context)
    for path in folder.iterdir():
        if path.name not in (PLAN_FILE, INPUT, CARD):
            path.unlink()
    return {
        "state": "ready", "prompts": len(made.prompts), "repeats": len(made.duplicates),
        "problems": [str(one) for one in made.problems[:SHOWN_PROBLEMS]],
    }  # fmt: skip


def _refused(fault: Exception) -> dict[str, Any]:
    told: dict[str, Any] = {"state": "refused", "problem": getattr(fault, "message", str(fault))}
    if isinstance(fault, BadJob):
        told["problems"] = [str(one) for one in fault.problems[:SHOWN_PROBLEMS]]
    if isinstance(fault, Impossible) and isfinite(fault.least_budget_usd):
        told["least_budget_usd"] = fault.least_budget_usd
    return told


def _folder(services: AdminServices) -> Path:
    return services.run_dir / FOLDER


def _place(services: AdminServices, id: str) -> Path:
    """Of a plan's files. Raises NotFound for what can't be an id."""
    if not id.replace("_", "").isalnum():
        raise NotFound(f"no plan has the id {id!r}")
    return _folder(services) / id


def _read(folder: Path) -> BatchPlan | None:
    at_work = {one.name for one in threading.enumerate()}  # asked first: a thread that ended since has written the card
    try:
        draft = BatchPlan.model_validate_json((folder / CARD).read_bytes())
    except (OSError, ValueError):
        return None
    if draft.state == "planning" and draft.id not in at_work:
        return draft.model_copy(update={"state": "refused", "problem": BROKEN_OFF})
    found = predicted(folder) if draft.state == "ready" else None
    if found is None:
        return draft
    return draft.model_copy(
        update={"chosen": point(found.chosen), "frontier": [point(one) for one in found.frontier]}
    )


def _write(folder: Path, draft: BatchPlan) -> None:
    """A reader never sees half of it."""
    fresh = folder / f"{CARD}.new"
    fresh.write_text(draft.model_dump_json(exclude={"chosen", "frontier"}))
    fresh.replace(folder / CARD)


def _drop_old(services: AdminServices) -> None:
    for folder in _old(services):
        shutil.rmtree(folder, ignore_errors=True)


def _old(services: AdminServices) -> Iterator[Path]:
    for folder in _folder(services).glob("*"):
        if folder.stat().st_mtime < time.time() - KEPT_S:
            yield folder


@router.get("")
def get_plans(services: Services, who: Viewer) -> list[BatchPlan]:
    """List plans that were not started, newest first."""
    return plans(services)


@router.post("", status_code=202)
def post_plan(services: Services, who: Operator, wanted: PlanWanted) -> BatchPlan:
    """Start planning a job; fetch it until it is no longer `planning`. Spends nothing."""
    return make_plan(services, who, wanted)


@router.get("/{id}")
def get_plan(services: Services, who: Viewer, id: str) -> BatchPlan:
    """One plan with its cost-quality frontier."""
    return plan(services, id)


@router.post("/{id}/begin", status_code=201)
def post_begin(services: Services, who: Operator, id: str, wanted: PlanRun) -> BatchJob:
    """Start the planned job, with the budget of the plan or another."""
    return begin(services, who, id, wanted)


@router.delete("/{id}", status_code=204)
def delete_plan(services: Services, who: Operator, id: str) -> None:
    """Delete a plan."""
    drop(services, who, id)
