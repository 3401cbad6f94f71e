"""/v1/batches of OpenAI's API: a job is made here, planned and run by whichever worker takes it, and seen here.
Those of Anthropic's API are not: to this one there are none.

Beyond OpenAI's fields a job takes `headgate` (the SDK's `extra_body`): a budget, a route for lines that name no
model, a floor on quality, and whether bad lines are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.api.files import asked, page_limit, page_of
from gateway.asgi import Answer, Request
from gateway.batch.duration import seconds_of
from gateway.batch.origin import ANTHROPIC, OPENAI
from gateway.call import SURFACES
from gateway.config import Usd
from gateway.errors import CallerError, NotFound
from gateway.reply import JSON
from gateway.wire.chunk import BAD_JSON

if TYPE_CHECKING:
    from gateway.batch.jobs import Job


class Extra(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What only this gateway understands."""

    budget_usd: Usd | None = None
    route: str = ""
    """Of lines that name no model; empty: the route `auto`, where there is one."""
    min_quality: Annotated[float, Meta(ge=0, le=1)] = 0.0
    skip_bad: bool = False
    cascade: bool = False


class OutputExpiry(msgspec.Struct, frozen=True):
    """When the files of answers and errors go: so long after they were made."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=2592000)]


class NewBatch(msgspec.Struct, frozen=True):
    """OpenAI's fields."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    output_expires_after: OutputExpiry | None = None
    headgate: Extra = Extra()


async def create_batch(request: Request, _: str) -> Answer:
    """Start a batch job from an uploaded file.

    Answers at once; the input is checked by whoever runs the job.
    """
    from gateway.batch.jobs import Card

    caller, services = request.caller(), request.services
    try:
        asks = msgspec.json.decode(request.body, type=NewBatch)
    except BAD_JSON as error:
        raise CallerError(f"batch: {error}", code="invalid_request") from None
    if asks.endpoint not in SURFACES:
        raise CallerError(f"endpoint must be one of {', '.join(SURFACES)}", param="endpoint", code="invalid_endpoint")
    window_s = _window_s(asks.completion_window)
    if route := asks.headgate.route:
        services.book.find(route)
        if not caller.may_use(route):
            raise NotFound(f"The model '{route}' does not exist.", code="model_not_found")
    store, now = services.batches, services.clock()
    file = await store.of_files(lambda files: files.find(asks.input_file_id, caller.tenant))
    if file.purpose != "batch":
        raise CallerError(f"{file.id} has the purpose {file.purpose!r}, not 'batch'", param="input_file_id")
    expiry = asks.output_expires_after
    card = Card(
        source=file.name, route=route or "auto", key_id=caller.key_id, budget_usd=asks.headgate.budget_usd,
        deadline_s=now + window_s, concurrency=services.config.server.batch_concurrency,
        skip_bad=asks.headgate.skip_bad, cascade=asks.headgate.cascade, floor=asks.headgate.min_quality,
        endpoint=asks.endpoint, completion_window=asks.completion_window, metadata=asks.metadata or {},
        input_file=file.id, output_expires_s=expiry.seconds if expiry else None,
    )  # fmt: skip
    job = await store.of_jobs(lambda jobs: jobs.add(caller.tenant, OPENAI, card, now))
    store.mark()
    store.asked.set()
    return _told(job)


async def get_batch(request: Request, id: str) -> Answer:
    """Show a batch job and how far it is."""
    tenant = request.caller().tenant
    return _told(await request.services.batches.of_jobs(lambda jobs: jobs.find(id, tenant, but=ANTHROPIC)))


async def list_batches(request: Request, _: str) -> Answer:
    """List batch jobs, newest first."""
    from gateway.batch.view import batch_object

    tenant, limit, after = request.caller().tenant, page_limit(request, 20, 100), asked(request, "after")
    found = await request.services.batches.of_jobs(
        lambda jobs: jobs.page(tenant, after=after, limit=limit + 1, but=ANTHROPIC)
    )
    return 200, [JSON], msgspec.json.encode(page_of([batch_object(job) for job in found], limit))


async def cancel_batch(request: Request, id: str) -> Answer:
    """Cancel a batch job. What is answered by then is kept."""
    services = request.services
    store = services.batches
    tenant = request.caller().tenant
    job = await store.of_jobs(
        lambda jobs: jobs.ask(jobs.find(id, tenant, but=ANTHROPIC).id, "cancel", services.clock())
    )
    store.mark()
    store.asked.set()
    return _told(job)


def _told(job: Job) -> Answer:
    from gateway.batch.view import batch_object

    return 200, [JSON], msgspec.json.encode(batch_object(job))


def _window_s(text: str) -> float:
    """OpenAI knows `24h` alone; other windows of minutes, hours or days are taken as well."""
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
