"""/v1/batches of OpenAI's API: jobs are created, listed and cancelled here, and run by whichever worker takes them.
Batches of Anthropic's API are invisible here.

Beyond OpenAI's fields a job takes `headgate` (the SDK's `extra_body`): a budget, a route for lines that name no
model, a floor on quality, whether bad lines are left out, and whether lines are answered by a cascade.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.api.files import page_limit, page_of, query_value
from gateway.asgi import Answer, Request
from gateway.batch.duration import seconds_of
from gateway.batch.origin import ANTHROPIC, OPENAI
from gateway.call import SURFACES
from gateway.config.types import Usd
from gateway.errors import CallerError, NotFound
from gateway.reply import JSON
from gateway.wire.chunk import BAD_JSON

if TYPE_CHECKING:
    from gateway.batch.jobs import Job


class Extra(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The gateway's own fields of a batch job."""

    budget_usd: Usd | None = None
    route: str = ""
    """Route of lines that name no model; empty: `auto`, if there is such a route."""
    min_quality: Annotated[float, Meta(ge=0, le=1)] = 0.0
    skip_bad: bool = False
    cascade: bool = False


class OutputExpiry(msgspec.Struct, frozen=True):
    """When the files of answers and errors expire: `seconds` after they were created."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=2592000)]


class NewBatch(msgspec.Struct, frozen=True):
    """The body of a request that creates a batch job."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    output_expires_after: OutputExpiry | None = None
    headgate: Extra = Extra()


async def create_batch(request: Request, _: str) -> Answer:
    """Start a batch job from an uploaded file.

    Answers at once; the input is checked when the job runs.
    """
    from gateway.batch.jobs import Card

    caller, services = request.caller(), request.services
    try:
        fields = msgspec.json.decode(request.body, type=NewBatch)
    except BAD_JSON as error:
        raise CallerError(f"batch: {error}", code="invalid_request") from None
    if fields.endpoint not in SURFACES:
        raise CallerError(f"endpoint must be one of {', '.join(SURFACES)}", param="endpoint", code="invalid_endpoint")
    window_s = _window_s(fields.completion_window)
    if route := fields.headgate.route:
        services.book.find(route)
        if not caller.may_use(route):
            raise NotFound(f"The model '{route}' does not exist.", code="model_not_found")
    store, now = services.batches, services.clock()
    file = await store.of_files(lambda files: files.find(fields.input_file_id, caller.tenant))
    if file.purpose != "batch":
        raise CallerError(f"{file.id} has the purpose {file.purpose!r}, not 'batch'", param="input_file_id")
    expiry = fields.output_expires_after
    card = Card(
        source=file.name, route=route or "auto", key_id=caller.key_id, budget_usd=fields.headgate.budget_usd,
        deadline_s=now + window_s, concurrency=services.config.server.batch_concurrency,
        skip_bad=fields.headgate.skip_bad, cascade=fields.headgate.cascade, floor=fields.headgate.min_quality,
        endpoint=fields.endpoint, completion_window=fields.completion_window, metadata=fields.metadata or {},
        input_file=file.id, output_expires_s=expiry.seconds if expiry else None,
    )  # fmt: skip
    job = await store.of_jobs(lambda jobs: jobs.add(caller.tenant, OPENAI, card, now))
    store.mark()
    store.asked.set()
    return _answer(job)


async def get_batch(request: Request, id: str) -> Answer:
    """Show a batch job and its progress."""
    tenant = request.caller().tenant
    return _answer(await request.services.batches.of_jobs(lambda jobs: jobs.find(id, tenant, but=ANTHROPIC)))


async def list_batches(request: Request, _: str) -> Answer:
    """List batch jobs, newest first."""
    from gateway.batch.view import batch_object

    tenant, limit, after = request.caller().tenant, page_limit(request, 20, 100), query_value(request, "after")
    found = await request.services.batches.of_jobs(
        lambda jobs: jobs.page(tenant, after=after, limit=limit + 1, but=ANTHROPIC)
    )
    return 200, [JSON], msgspec.json.encode(page_of([batch_object(job) for job in found], limit))


async def cancel_batch(request: Request, id: str) -> Answer:
    """Cancel a batch job. Answers that it already has are kept."""
    services = request.services
    store = services.batches
    tenant = request.caller().tenant
    job = await store.of_jobs(
        lambda jobs: jobs.ask(jobs.find(id, tenant, but=ANTHROPIC).id, "cancel", services.clock())
    )
    store.mark()
    store.asked.set()
    return _answer(job)


def _answer(job: Job) -> Answer:
    from gateway.batch.view import batch_object

    return 200, [JSON], msgspec.json.encode(batch_object(job))


def _window_s(text: str) -> float:
    """The completion window in seconds. OpenAI allows only `24h`; here any time from a minute to 14 days is. Raises
    CallerError.
    """
    try:
        seconds = seconds_of(text)
    except ValueError:
        seconds = 0.0
    if not 60 <= seconds <= 14 * 86400:
        raise CallerError(
            "completion_window must be 24h, or another time from 1m to 14d", param="completion_window",
            code="invalid_completion_window",
        )  # fmt: skip
    return seconds
