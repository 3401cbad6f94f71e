"""The pages of batch jobs and their plans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, Query, Request, Response

from gateway.admin import batch as admin_batch
from gateway.admin import plans, results
from gateway.admin.guard import Actor, operator, services_of, viewer
from gateway.admin.results import What
from gateway.admin.shapes.batch import PlanPoint, PlanRun, PlanWanted
from gateway.batch.duration import seconds_of
from gateway.batch.execute import PLANS
from gateway.batch.jobs import ENDED, Jobs
from gateway.dashboard.charts import Spot
from gateway.dashboard.forms import Fields, picked, shaped
from gateway.dashboard.page import render
from gateway.errors import CallerError, TooLarge
from gateway.wire.multipart import read_multipart

router = APIRouter()
PAGE = 50
FORM_BYTES = 1 << 16
"""Most bytes of the form without its file."""
SAID = {
    "pause": "The job pauses once the calls under way have ended.", "resume": "The job continues.",
    "cancel": "The job is being cancelled; calls under way are still paid for.",
}  # fmt: skip
"""Message after each action."""


@router.get("/batch")
def show_all(request: Request, who: Annotated[Actor, Depends(viewer)], after: str = "") -> Response:
    """A page of jobs, newest first; above them the plans that were not started."""
    services = services_of(request)
    found = admin_batch.batch_page(services, cursor=after, limit=PAGE)
    context = {
        "title": "Batch jobs", "rows": found.data, "further": found.next, "first": bool(after),
        "plans": plans.plans(services), "routes": [one.name for one in services.current.routes],
    }  # fmt: skip
    return render(request, who, "batch.html", context)


@router.post("/batch/plans")
async def make_plan(request: Request, who: Annotated[Actor, Depends(operator)]) -> Response:
    """Plan a file of prompts; spends nothing."""
    fields = await _upload(request)
    given = {**picked(fields, PlanWanted), "skip_bad": fields.get("skip_bad") == "on"}
    if given.get("deadline_s"):
        given["deadline_s"] = _length_s(given["deadline_s"])
    made = plans.make_plan(services_of(request), who, shaped(PlanWanted, {"prompts": "", **given}))
    return _plan_page(request, who, made.id, at=f"/batch/plans/{made.id}")


@router.get("/batch/plans/{id}")
def show_plan(request: Request, who: Annotated[Actor, Depends(viewer)], id: str) -> Response:
    """A plan, with what each budget would buy."""
    return _plan_page(request, who, id)


@router.post("/batch/plans/{id}/begin")
def begin(request: Request, who: Annotated[Actor, Depends(operator)], id: str, fields: Fields) -> Response:
    """Start a planned job."""
    job = plans.begin(services_of(request), who, id, shaped(PlanRun, picked(fields, PlanRun)))
    return _page(request, who, job.id, said="The job is started: a worker takes it in seconds.", at=f"/batch/{job.id}")


@router.post("/batch/plans/{id}/drop")
def drop(request: Request, who: Annotated[Actor, Depends(operator)], id: str) -> Response:
    """Delete a plan."""
    plans.drop(services_of(request), who, id)
    return Response(headers={"hx-redirect": "/batch"})


@router.get("/batch/{id}")
def show(
    request: Request, who: Annotated[Actor, Depends(viewer)], id: str, after: Annotated[int, Query(alias="from")] = -1
) -> Response:
    """One job: its plan, its progress and its answers."""
    return _page(request, who, id, after)


@router.get("/batch/{id}/{what}.jsonl")
def download(request: Request, who: Annotated[Actor, Depends(operator)], id: str, what: What) -> Response:
    """Download all answers, or all errors."""
    return results.download(services_of(request), id, what)


@router.post("/batch/{id}/{turn}")
def turn(request: Request, who: Annotated[Actor, Depends(operator)], id: str, turn: str) -> Response:
    """Pause, resume or cancel a job."""
    if turn not in SAID:
        raise CallerError(f"there is no action '{turn}': use pause, resume or cancel", status=404)
    admin_batch.change_batch(services_of(request), who, id, cast(Literal["pause", "resume", "cancel"], turn))
    return _page(request, who, id, said=SAID[turn])


def _page(
    request: Request, who: Actor, id: str, after: int = -1, said: str = "", at: str = ""
) -> Response:
    services = services_of(request)
    job = admin_batch.batch_job(services, id)
    card = Jobs(services.store.engine).find(id).card
    planned = plans.predicted(Path(card.folder) if card.folder else services.run_dir / PLANS / id)
    points = [plans.point(one) for one in planned.frontier] if planned else []
    context = {
        "title": job.source or "Batch job", "job": job, "ended": job.state in ENDED, "errors": card.errors,
        "files": {"answers": card.output_file, "errors": card.error_file},
        "answers": results.answers(services, id, after), "after": after,
        **_drawn(points, plans.point(planned.chosen) if planned else None),
    }  # fmt: skip
    return render(request, who, "batch_job.html", context, said=said, at=at)


def _plan_page(request: Request, who: Actor, id: str, at: str = "") -> Response:
    plan = plans.plan(services_of(request), id)
    context = {"title": plan.name, "plan": plan, **_drawn(plan.frontier, plan.chosen)}
    return render(request, who, "batch_plan.html", context, at=at)


def _drawn(frontier: Sequence[PlanPoint], chosen: PlanPoint | None) -> dict[str, Any]:
    """Template variables for the chart of what budgets would buy."""
    spots = [_spot(one, "", "model") for one in frontier] + ([_spot(chosen, "chosen", "now")] if chosen else [])
    return {
        "chosen": chosen, "spots": spots, "hull": sorted((one.cost_usd.value, one.quality.value) for one in frontier)
    }


def _spot(one: PlanPoint, name: str, mark: str) -> Spot:
    cost, worth = one.cost_usd, one.quality
    return Spot(name, cost.value, worth.value, cost.low, cost.high, worth.low, worth.high, mark)


async def _upload(request: Request) -> dict[str, str]:
    """The form's fields, with the file's name and text."""
    most = services_of(request).config.server.max_body_bytes + FORM_BYTES
    if int(request.headers.get("content-length") or 0) > most:
        raise TooLarge(f"the file is larger than max_body_bytes ({most - FORM_BYTES:,}): use `headgate batch plan`")
    parts = read_multipart(request.headers.get("content-type", "").encode(), await request.body())
    fields = {name: part.data.decode("utf-8", "replace").strip() for name, part in parts.items() if not part.filename}
    file = parts.get("prompts")
    if file is not None and file.filename:
        fields |= {"name": file.filename[-200:], "prompts": file.data.decode("utf-8", "replace")}
    return fields


def _length_s(text: str) -> float:
    """Seconds of a length of time such as 90m, 12h or 2d. Raises CallerError."""
    try:
        return seconds_of(text)
    except ValueError as fault:
        raise CallerError(f"Deadline: {fault}", status=422, param="deadline_s") from None
