"""A job as people and programs outside see it: `--json`, the admin API, and OpenAI's batch object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.batch.jobs import Job
from gateway.batch.types import Problem
from gateway.prices import usd

MOST_ERRORS = 1000
"""Told with a job."""


def job_view(job: Job) -> dict[str, Any]:
    """Money in dollars, times in Unix seconds."""
    now, card = msgspec.to_builtins(job.progress), job.card
    defaults = msgspec.structs.asdict(type(job.progress)())
    standing = {**defaults, **now}
    money = {f"{name}_usd": usd(standing.pop(f"{name}_nanousd")) for name in ("spent", "expected", "at_risk")}
    return {
        "id": job.id,
        "tenant": job.tenant,
        "origin": job.origin,
        "state": job.state,
        "wish": job.wish,
        "source": card.source,
        "route": card.route,
        "budget_usd": card.budget_usd,
        "deadline_s": card.deadline_s,
        "created_s": job.created_s,
        "owner": job.owner,
        "out": card.out,
        "errors_out": card.errors_out,
        "metadata": card.metadata,
        **standing,
        **money,
        "total": standing["total"] or card.total,
    }


_STATES = {
    "validating": "validating", "running": "in_progress", "paused": "in_progress", "finalizing": "finalizing",
    "cancelling": "cancelling", "completed": "completed", "cancelled": "cancelled", "expired": "expired",
    "failed": "failed",
}  # fmt: skip
_TIMES = {
    "in_progress_at": "running", "finalizing_at": "finalizing", "completed_at": "completed", "failed_at": "failed",
    "expired_at": "expired", "cancelling_at": "cancelling", "cancelled_at": "cancelled",
}  # fmt: skip


def batch_object(job: Job) -> dict[str, Any]:
    """As OpenAI's API describes a batch."""
    card, now = job.card, job.progress
    at = {name: int(card.times[state]) if state in card.times else None for name, state in _TIMES.items()}
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": card.endpoint,
        "errors": {"object": "list", "data": card.errors} if card.errors else None,
        "input_file_id": card.input_file,
        "completion_window": card.completion_window,
        "status": _STATES[job.state],
        "output_file_id": card.output_file or None,
        "error_file_id": card.error_file or None,
        "created_at": int(job.created_s),
        "expires_at": None if card.deadline_s is None else int(card.deadline_s),
        **at,
        "request_counts": {"total": now.total or card.total, "completed": now.done, "failed": now.failed},
        "metadata": card.metadata or None,
    }


def errors_of(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Bad lines as the API's `errors` tell them."""
    return [
        {"code": one.code, "message": f"{one.custom_id}: " * bool(one.custom_id) + one.message, "param": None,
         "line": one.line or None}
        for one in problems[:MOST_ERRORS]
    ]  # fmt: skip
