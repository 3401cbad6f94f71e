"""The actor of a request, and which roles include which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.admin.shapes.common import Role

RANK: dict[str, int] = {"viewer": 0, "operator": 1, "admin": 2}


@dataclass(frozen=True, slots=True)
class Actor:
    """Whoever sends a request. `name` goes into the audit log."""

    name: str
    role: Role
    csrf: str = ""
    """CSRF token that a change must carry where `how` is "cookie"."""
    how: Literal["cookie", "bearer", "this machine"] = "bearer"
    """How the actor was authenticated."""
    expires_s: float | None = None
    """When the session ends, in Unix seconds; None where there is no session."""


def may(actor: Actor, role: Role) -> bool:
    """Whether the actor's role includes this one."""
    return RANK[actor.role] >= RANK[role]
