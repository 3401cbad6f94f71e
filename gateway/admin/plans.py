"""Plans of batch jobs, made on the dashboard: a plan shows what each budget would buy, before anything is spent.

A plan is computed in a thread of its own, on one core. It is stored in the run folder until its job is started, it is
deleted, or it is a month old. Of a started plan the prediction stays, so that the job's page can show it. The worker
that takes the job plans it again from the same prompts, because routers may have changed since.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
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
from gateway.config.settings import read_settings
from gateway.errors import CallerError, HeadgateError, NotFound, TooLarge
from gateway.journal.record import new_id
from gateway.keys import ANYONE, MASTER
from routers.cores import one_core

log = logging.getLogger("headgate.plans")
router = APIRouter(prefix="/admin/plans", tags=["batches"])

FOLDER, CARD, INPUT = "drafts", "draft.json", "input.jsonl"
BEGUN = "begun.json"
"""The plan's file is renamed to this while its job is created, so that only one of two clients can start it."""
KEPT_S = 30 * 86400.0
SHOWN_PROBLEMS = 20
FAILED = "planning failed because of a fault in the gateway; see its log"
BROKEN_OFF = "the gateway was stopped while it planned this job; plan it again"


class Predicted(msgspec.Struct):
    """The part of plan.json that is displayed; its other fields are not read."""

    frontier: tuple[Point, ...]
    chosen: Point


def predicted(folder: Path) -> Predicted | None:
    """The prediction in a plan's folder; None where it is missing, as on another machine."""
    try:
        return msgspec.json.decode((folder / PLAN_FILE).read_bytes(), type=Predicted)
    except (OSError, msgspec.MsgspecError):
        return None


def plans(services: AdminServices) -> list[BatchPlan]:
    """Plans whose jobs were not started, newest first."""
    found = [_read(path.parent) for path in _folder(services).glob(f"*/{CARD}")]
    return sorted((one for one in found if one is not None), key=lambda one: -one.time_s)


def plan(services: AdminServices, id: str) -> BatchPlan:
    """One plan. Raises NotFound."""
    found = _read(_place(services, id))
    if found is None:
        raise NotFound(f"no plan has the id {id!r}")
    return found


def make_plan(services: AdminServices, who: Actor, wanted: PlanWanted) -> BatchPlan:
    """Start planning, and return at once, in the state `planning`. Raises CallerError, NotFound or TooLarge."""
    route_of(services, wanted.route)
    prompts, most = wanted.prompts.encode(), services.config.server.max_body_bytes
    if not prompts.strip():
        raise CallerError("the file contains no prompt", status=422, param="prompts")
    if len(prompts) > most:
        raise TooLarge(
            f"the prompts have {len(prompts):,} bytes, more than max_body_bytes ({most:,}): use `headgate batch plan`"
        )
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
    """Start a plan's job, which a worker takes within seconds, and remove the plan.

    A plan can be started once. Where the database is away the plan stays. Raises NotFound, DatabaseAway, or CallerError
    where the plan isn't ready.
    """
    draft, folder = plan(services, id), _place(services, id)
    if draft.state != "ready":
        raise CallerError(f"the plan can't be started: its state is {draft.state}", code="not_ready", status=409)
    try:
        (folder / CARD).rename(folder / BEGUN)
    except FileNotFoundError:
        raise NotFound(f"the plan {id!r} has just been started or deleted by somebody else") from None
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
    """Delete a plan. Raises NotFound."""
    plan(services, id)
    shutil.rmtree(_place(services, id), ignore_errors=True)


def point(one: Point) -> PlanPoint:
    """A planner's point in the shape of the admin API."""
    cost, quality = one.cost_usd, one.quality
    return PlanPoint(
        budget_usd=one.budget_usd if isfinite(one.budget_usd) else None, calls=dict(one.calls),
        cost_usd=Interval(value=cost.value, low=cost.low, high=cost.high),
        quality=Interval(value=quality.value, low=quality.low, high=quality.high),
    )  # fmt: skip


def _work(services: AdminServices, draft: BatchPlan, folder: Path) -> None:
    try:
        with one_core():
            found = _planned(services, draft, folder)
    except (HeadgateError, OSError) as fault:
        found = _refused(fault)
    except Exception:  # else the plan would stay in the state `planning`
        log.exception("%s failed", draft.id)
        found = {"state": "refused", "problem": FAILED}
    if folder.exists():  # else the plan has been deleted meanwhile
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
    fields: dict[str, Any] = {"state": "refused", "problem": getattr(fault, "message", str(fault))}
    if isinstance(fault, BadJob):
        fields["problems"] = [str(one) for one in fault.problems[:SHOWN_PROBLEMS]]
    if isinstance(fault, Impossible) and isfinite(fault.least_budget_usd):
        fields["least_budget_usd"] = fault.least_budget_usd
    return fields


def _folder(services: AdminServices) -> Path:
    return services.run_dir / FOLDER


def _place(services: AdminServices, id: str) -> Path:
    """Folder of a plan's files. Raises NotFound where the text can't be an id."""
    if not id.replace("_", "").isalnum():
        raise NotFound(f"no plan has the id {id!r}")
    return _folder(services) / id


def _read(folder: Path) -> BatchPlan | None:
    at_work = {one.name for one in threading.enumerate()}  # before the file is read: a thread writes it, then ends
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
    """Write a plan's file atomically."""
    fresh = folder / f"{CARD}.new"
    fresh.write_text(draft.model_dump_json(exclude={"chosen", "frontier"}))
    fresh.replace(folder / CARD)


def _drop_old(services: AdminServices) -> None:
    for folder in _folder(services).glob("*"):
        if folder.stat().st_mtime < time.time() - KEPT_S:
            shutil.rmtree(folder, ignore_errors=True)


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
