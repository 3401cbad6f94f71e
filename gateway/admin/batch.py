"""Batch jobs in the admin API: list them with their progress, pause, resume and cancel them. Changes are audited."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from gateway.admin.actor import Actor
from gateway.admin.changes import database
from gateway.admin.guard import Operator, Services, Viewer
from gateway.admin.services import AdminServices
from gateway.batch.jobs import Jobs, Wish
from gateway.batch.view import job_view
from gateway.journal.record import AuditRecord, new_id
from gateway.journal.write import write_audit

router = APIRouter(prefix="/admin/batches", tags=["batches"])
Change = Literal["pause", "resume", "cancel"]
_WISHES: dict[str, Wish] = {"pause": "pause", "resume": "", "cancel": "cancel"}


class BatchJob(BaseModel):
    """A batch job. Money is in dollars, times are Unix seconds, counts are lines of the input."""

    id: str
    tenant: str
    origin: str
    state: str
    wish: str
    source: str
    route: str
    created_s: float
    budget_usd: float | None
    deadline_s: float | None
    total: int
    done: int
    failed: int
    in_flight: int
    at_provider: int
    spent_usd: float
    expected_usd: float
    at_risk_usd: float
    quality: float | None
    rate_per_s: float
    eta_s: float | None
    concurrency: int
    replans: int
    warning: str
    by_model: dict[str, int]
    metadata: dict[str, str]
    owner: str
    out: str
    errors_out: str


class BatchPage(BaseModel):
    """A page of jobs, newest first. `next` is the cursor of the next page; null on the last."""

    data: list[BatchJob]
    next: str | None


def batch_page(services: AdminServices, tenant: str = "", cursor: str = "", limit: int = 100) -> BatchPage:
    """A page of jobs, newest first: of one tenant, or of all where `tenant` is empty."""
    with database():
        found = Jobs(services.store.engine).page(tenant or None, after=cursor, limit=limit)
    following = found[-1].id if len(found) == limit else None
    return BatchPage(data=[BatchJob(**job_view(job)) for job in found], next=following)


def batch_job(services: AdminServices, id: str) -> BatchJob:
    """One job. Raises NotFound."""
    with database():
        return BatchJob(**job_view(Jobs(services.store.engine).find(id)))


def change_batch(services: AdminServices, who: Actor, id: str, what: Change) -> BatchJob:
    """Ask a job's runner to pause, resume or cancel it, which it does within seconds; calls under way are completed.

    Raises CallerError (409) where the job has ended.
    """
    jobs, now = Jobs(services.store.engine), time.time()
    with database():
        job = jobs.ask(id, _WISHES[what], now)
        detail: dict[str, Any] = {"state": job.state}
        entry = AuditRecord(
            id=new_id("aud"), time_s=now, actor=who.name, action=f"batch.{what}", target=id, detail=detail
        )
        with jobs.engine.begin() as connection:
            write_audit(connection, [entry])
    return BatchJob(**job_view(job))


@router.get("")
def get_batches(
    services: Services, who: Viewer, tenant: str = "", cursor: str = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> BatchPage:  # fmt: skip
    """List batch jobs, newest first, of one tenant or of all."""
    return batch_page(services, tenant, cursor, limit)


@router.get("/{id}")
def get_batch(services: Services, who: Viewer, id: str) -> BatchJob:
    """One batch job and its progress."""
    return batch_job(services, id)


@router.post("/{id}/{what}")
def post_batch(services: Services, who: Operator, id: str, what: Change) -> BatchJob:
    """Pause, resume or cancel a batch job; 409 if it has ended."""
    return change_batch(services, who, id, what)
