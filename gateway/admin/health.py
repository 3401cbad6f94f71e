"""Health and metrics of all processes of this machine; open, like the data plane's own."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from gateway.admin.guard import Services
from gateway.metrics import Metrics, merge, total
from gateway.worker_counters import REFUSED

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """`fault` says why shipping waits; records are safe in the spools meanwhile. What workers drop is in none."""

    status: Literal["ready", "degraded", "unready"]
    database: Literal["ok", "away"]
    waiting_bytes: int
    quarantined: int
    journal: str
    """ok | workers that drop records: N; the disk or the spools are full; each worker's own /readyz says which."""
    dropped: int
    """Records, since the start."""
    fault: str
    reload: Literal["ok", "refused"]
    """Refused: the configuration in force is older than the file; the log of the supervisor says why."""


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """200 while this process answers; it asks no other."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(services: Services, response: Response) -> Health:
    """503 until the database has been reached once; `degraded` while it is away later, or workers drop records."""
    fault, refused = services.shipping.fault, (services.run_dir / REFUSED).exists()
    told = [snapshot for _, snapshot in services.snapshots()]
    dropping = int(total(told, "headgate_journal_dropping"))
    if not services.opened:
        response.status_code = 503
    return Health(
        status="unready" if not services.opened else "degraded" if fault or refused or dropping else "ready",
        database="away" if fault or not services.opened else "ok",
        waiting_bytes=services.shipping.waiting_bytes,
        quarantined=services.shipping.quarantined,
        journal=f"workers that drop records: {dropping}" if dropping else "ok",
        dropped=int(total(told, "headgate_journal_dropped")),
        fault=fault,
        reload="refused" if refused else "ok",
    )


@router.get("/metrics")
def metrics(services: Services) -> Response:
    """Metrics of all workers together, as last reported, and how far the store lags behind them."""
    own = Metrics()
    own.watch("headgate_journal_lag_bytes", lambda: {(): float(services.shipping.waiting_bytes)})
    own.watch("headgate_reload_refused", lambda: {(): float((services.run_dir / REFUSED).exists())})
    if services.tls is not None:
        own.watch("headgate_certificate_expiry_seconds", services.tls.left)
    text = merge([own.snapshot(), *(snapshot for _, snapshot in services.snapshots())])
    return Response(text, media_type="text/plain; version=0.0.4")
