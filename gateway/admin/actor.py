"""Who asks, and what a role includes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.admin.shapes.common import Role

RANK: dict[str, int] = {"viewer": 0, "operator": 1, "admin": 2}


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks. `name` goes into the audit log."""

    name: str
    role: Role
    csrf: str = ""
    """What a change must show where `how` is a cookie."""
    how: Literal["cookie", "bearer", "this machine"] = "bearer"
    expires_s: float | None = None


def may(actor: Actor, role: Role) -> bool:
    """Whether the actor's role includes this one."""
    return RANK[actor.role] >= RANK[role]
