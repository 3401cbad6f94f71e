"""The public descriptions of a job: for `--json` and the admin API, and as OpenAI's and Anthropic's batch objects."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.batch.jobs import ENDED, Job
from gateway.batch.types import Problem
from gateway.money.prices import usd

MOST_ERRORS = 1000
"""Most errors in the description of a job."""
KEPT_S = 30 * 86400.0
"""Seconds for which output files are kept: from their creation for OpenAI's API, from the batch's creation for
Anthropic's.
"""


def job_view(job: Job) -> dict[str, Any]:
    """The job for `--json` and the admin API; money in dollars, times in Unix seconds."""
    card = job.card
    progress = msgspec.structs.asdict(job.progress)
    money = {f"{name}_usd": usd(progress.pop(f"{name}_nanousd")) for name in ("spent", "expected", "at_risk")}
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
        **progress,
        **money,
        "total": progress["total"] or card.total,
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
_RESULTS = ("succeeded", "errored", "canceled", "expired")


def batch_object(job: Job) -> dict[str, Any]:
    """The job as OpenAI's batch object."""
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


def message_batch_object(job: Job, now_s: float) -> dict[str, Any]:
    """The job as Anthropic's message batch object. Until the end all requests count as `processing`."""
    card, is_over = job.card, job.state in ENDED
    status = "ended" if is_over else "canceling" if job.wish == "cancel" else "in_progress"
    ends_s = job.created_s + KEPT_S
    is_kept = is_over and bool(card.output_file) and now_s < ends_s
    counts = {name: card.results.get(name, 0) if is_over else 0 for name in _RESULTS}
    return {
        "id": job.id,
        "type": "message_batch",
        "processing_status": status,
        "request_counts": {"processing": 0 if is_over else card.requests, **counts},
        "created_at": _moment(job.created_s),
        "expires_at": _moment(card.deadline_s),
        "ended_at": _moment(card.times.get(job.state)) if is_over else None,
        "cancel_initiated_at": _moment(card.times.get("cancelling")),
        "archived_at": _moment(ends_s) if is_over and not is_kept else None,
        "results_url": f"/v1/messages/batches/{job.id}/results" if is_kept else None,
    }


def _moment(time_s: float | None) -> str | None:
    """A Unix time in the format of RFC 3339."""
    if time_s is None:
        return None
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def errors_of(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """The first problems, in the format of the API's `errors`."""
    return [
        {"code": one.code, "message": f"{one.custom_id}: " * bool(one.custom_id) + one.message, "param": None,
         "line": one.line or None}
        for one in problems[:MOST_ERRORS]
    ]  # fmt: skip
