"""Health and metrics of all processes of this machine. They need no authentication, as on the data port."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from gateway.admin.guard import Services
from gateway.exposition import merge, total
from gateway.metrics import Metrics
from gateway.serve.worker_counters import REFUSED

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """State of this machine's gateway. `fault` says why records are not shipped to the database; meanwhile they are
    safe in the spools. Dropped records are lost.
    """

    status: Literal["ready", "degraded", "unready"]
    database: Literal["ok", "away"]
    waiting_bytes: int
    quarantined: int
    journal: str
    """Either "ok" or "workers that drop records: N": the disk or a spool is full, as /readyz of the workers says."""
    dropped: int
    """Number of records dropped since the start."""
    fault: str
    reload: Literal["ok", "refused"]
    """Whether the configuration file, as it is now, is in force; the supervisor's log says why it was refused."""


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """200 while this process runs; checks nothing else."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(services: Services, response: Response) -> Health:
    """503 until the database has been reached once; later `degraded` while it is away, a reload was refused, or workers
    drop records.
    """
    fault, refused = services.shipping.fault, (services.run_dir / REFUSED).exists()
    snapshots = [snapshot for _, snapshot in services.snapshots()]
    dropping = int(total(snapshots, "headgate_journal_dropping"))
    if not services.opened:
        response.status_code = 503
    return Health(
        status="unready" if not services.opened else "degraded" if fault or refused or dropping else "ready",
        database="away" if fault or not services.opened else "ok",
        waiting_bytes=services.shipping.waiting_bytes,
        quarantined=services.shipping.quarantined,
        journal=f"workers that drop records: {dropping}" if dropping else "ok",
        dropped=int(total(snapshots, "headgate_journal_dropped")),
        fault=fault,
        reload="refused" if refused else "ok",
    )


@router.get("/metrics")
def metrics(services: Services) -> Response:
    """Merged metrics of all workers, as last reported, and of this process."""
    own = Metrics()
    own.watch("headgate_journal_lag_bytes", lambda: {(): float(services.shipping.waiting_bytes)})
    own.watch("headgate_reload_refused", lambda: {(): float((services.run_dir / REFUSED).exists())})
    if services.tls is not None:
        own.watch("headgate_certificate_expiry_seconds", services.tls.left)
    text = merge([own.snapshot(), *(snapshot for _, snapshot in services.snapshots())])
    return Response(text, media_type="text/plain; version=0.0.4")
