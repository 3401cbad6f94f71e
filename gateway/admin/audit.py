"""The audit log: who changed what, and the undoing of changes to settings."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from gateway.admin import changes
from gateway.admin.actor import Actor, may
from gateway.admin.changes import database
from gateway.admin.guard import Operator, Services, Viewer
from gateway.admin.services import AdminServices
from gateway.admin.shapes.common import Applied, AuditRow, Wanted
from gateway.errors import CallerError, PolicyError

router = APIRouter(prefix="/admin/audit", tags=["audit"])
OPERATORS = ("route:",)
"""Prefixes of the settings that an operator may change; the others need an admin."""
UNDOABLE = ("route:", "provider:", "model:", "tenant:", "baseline")
"""Prefixes of the settings whose changes can be undone."""


class Undo(Wanted):
    """The setting to undo, and the version of it that is in force."""

    name: str
    version: int


def audit_log(
    services: AdminServices, before: tuple[float, str] | None = None, action: str = "", limit: int = 100
) -> list[AuditRow]:
    """Rows of the audit log, newest first. The latest change of an undoable setting carries `undo`."""
    with database():
        rows = services.store.audit_log(before=before, action=action, limit=limit)
        in_force = services.store.setting_numbers("") if any(row["action"] == "setting.save" for row in rows) else {}
    found = []
    for row in rows:
        version, name = row["detail"].get("version"), row["target"]
        latest = row["action"] == "setting.save" and name.startswith(UNDOABLE) and in_force.get(name) == version
        found.append(AuditRow(**row, undo={"name": name, "version": version} if latest else None))
    return found


def undo_setting(services: AdminServices, who: Actor, name: str, version: int) -> Applied:
    """Put the value before `version` into force again. Raises Conflict, CallerError or PolicyError."""
    if not name.startswith(UNDOABLE):
        raise CallerError(
            f"{name} can't be undone: only changes to routes, providers, models, tenants and the baseline can",
            param="name", status=422,
        )  # fmt: skip
    if not name.startswith(OPERATORS) and not may(who, "admin"):
        raise PolicyError(f"undoing {name} needs the role admin; {who.name} is {who.role}", code="role", status=403)
    return changes.undo(services, who, name, version)


@router.get("")
def get_audit(
    services: Services, who: Viewer, before_s: float | None = None, before_id: str = "", action: str = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[AuditRow]:
    """List changes, newest first. `before_s` and `before_id`: `time_s` and `id` of the last row of the page before."""
    return audit_log(services, None if before_s is None else (before_s, before_id), action, limit)


@router.post("/undo")
def post_undo(services: Services, who: Operator, wanted: Undo) -> Applied:
    """Undo a change: the value before it is in force again."""
    return undo_setting(services, who, wanted.name, wanted.version)
