"""/v1/messages/batches of Anthropic's API, run by the same engine as /v1/batches.

A batch is visible only to the key that created it, and neither in /v1/batches nor in /v1/files. Beyond Anthropic's
fields it takes `headgate` (the SDK's `extra_body`): a budget, and a floor on quality.
"""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from gateway.api.files import PIECE_BYTES, content_of, page_limit, query_value
from gateway.asgi import Answer, Request
from gateway.batch.origin import ANTHROPIC
from gateway.config.types import Usd
from gateway.errors import CallerError, NotFound
from gateway.journal.record import new_id
from gateway.keys import Caller
from gateway.reply import JSON
from gateway.services import Services
from gateway.wire.chunk import BAD_JSON

if TYPE_CHECKING:
    from gateway.batch.jobs import Job

WINDOW_S = 86400.0
JSON_LINES = (b"content-type", b"application/x-jsonl")


class Extra(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The gateway's own fields of a batch of messages."""

    budget_usd: Usd | None = None
    min_quality: Annotated[float, Meta(ge=0, le=1)] = 0.0


async def create_message_batch(request: Request, _: str) -> Answer:
    """Start a batch of messages.

    Answers once all requests are stored; the params of each are checked when the batch runs.
    """
    from gateway.batch.requests import write_lines

    caller, services = request.caller(), request.services
    server, store = services.config.server, services.batches
    store.run_dir.mkdir(parents=True, exist_ok=True)
    pieces = request.pieces(server.max_file_bytes)
    with TemporaryFile(dir=store.run_dir) as lines:
        with TemporaryFile(dir=store.run_dir) as body:
            async for piece in pieces:
                body.write(piece)
            count, others = await store.of_files(lambda _: write_lines(_read(body), lines, server.max_body_bytes))
        job = await _store(services, caller, lines, count, _extra(others))
    return _answer(job, services)


async def _store(services: Services, caller: Caller, lines: IO[bytes], count: int, extra: Extra) -> Job:
    """Store the input, then the job. If this process ends between the two, the input expires like any other file."""
    from gateway.batch.jobs import Card
    from gateway.batch.requests import URL
    from gateway.batch.view import KEPT_S

    store, now = services.batches, services.clock()
    id = new_id("msgbatch")
    name, file = f"{id}_requests.jsonl", f"{id}_requests"
    await store.of_files(
        lambda files: files.add(id, "batch", name, _read(lines), now, id=file, expires_s=now + KEPT_S)
    )
    card = Card(
        source=name, route="auto", key_id=caller.key_id, budget_usd=extra.budget_usd, deadline_s=now + WINDOW_S,
        concurrency=services.config.server.batch_concurrency, skip_bad=True, floor=extra.min_quality, endpoint=URL,
        completion_window="24h", input_file=file, total=count, requests=count,
    )  # fmt: skip
    job = await store.of_jobs(lambda jobs: jobs.add(caller.tenant, ANTHROPIC, card, now, id=id))
    store.mark()
    store.asked.set()
    return job


def _read(file: IO[bytes]) -> Iterator[bytes]:
    """The file's content from its start, piece by piece."""
    file.seek(0)
    return iter(lambda: file.read(PIECE_BYTES), b"")


def _extra(others: dict[str, msgspec.Raw]) -> Extra:
    own_fields = others.pop("headgate", msgspec.Raw(b"{}"))
    if others:
        raise CallerError(f"{next(iter(others))}: Extra inputs are not permitted", param=next(iter(others)))
    try:
        return msgspec.json.decode(own_fields, type=Extra)
    except BAD_JSON as error:
        raise CallerError(f"headgate: {error}", param="headgate") from None


async def get_message_batch(request: Request, id: str) -> Answer:
    """Show a batch of messages and its progress."""
    return _answer(await _find(request, id), request.services)


async def list_message_batches(request: Request, _: str) -> Answer:
    """List batches of messages, newest first."""
    from gateway.batch.view import message_batch_object

    caller, services, limit = request.caller(), request.services, page_limit(request, 20, 1000)
    before, after = query_value(request, "before_id"), query_value(request, "after_id")
    if before and after:
        raise CallerError("before_id and after_id can't both be given", param="before_id")
    found = await services.batches.of_jobs(
        lambda jobs: jobs.page_of_key(caller.tenant, caller.key_id, after=after, before=before, limit=limit + 1)
    )
    shown = found[-limit:] if before else found[:limit]
    data = [message_batch_object(job, services.clock()) for job in shown]
    page = {
        "data": data,
        "has_more": len(found) > limit,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
    return 200, [JSON], msgspec.json.encode(page)


async def cancel_message_batch(request: Request, id: str) -> Answer:
    """Cancel a batch of messages. Answers that it already has are kept."""
    services, job = request.services, await _find(request, id)
    _refuse_ended(job)
    job = await services.batches.of_jobs(lambda jobs: jobs.ask(job.id, "cancel", services.clock()))
    services.batches.mark()
    services.batches.asked.set()
    return _answer(job, services)


async def delete_message_batch(request: Request, id: str) -> Answer:
    """Delete a batch of messages that has ended, with its requests and results. Its cost stays in the journal."""
    from gateway.batch.retention import delete_batch

    job = await _find(request, id)
    if not await request.services.batches.of_jobs(lambda jobs: delete_batch(jobs.engine, job.id)):
        raise CallerError(f"{job.id} can't be deleted before its processing has ended: cancel it first")
    return 200, [JSON], msgspec.json.encode({"id": job.id, "type": "message_batch_deleted"})


async def get_message_batch_results(request: Request, id: str) -> Answer:
    """Download the results of a batch of messages: one line of JSON per request, in no particular order."""
    from gateway.batch.view import message_batch_object

    services, job = request.services, await _find(request, id)
    described = message_batch_object(job, services.clock())
    if described["processing_status"] != "ended":
        raise CallerError(f"{job.id} has no results before its processing has ended")
    if described["results_url"] is None:
        raise NotFound(f"The results of {job.id} are no longer kept.")
    file = await services.batches.of_files(lambda files: files.find(job.card.output_file, job.files_of))
    return 200, [JSON_LINES, (b"content-length", b"%d" % file.bytes)], content_of(request, file.id)


async def _find(request: Request, id: str) -> Job:
    caller = request.caller()
    return await request.services.batches.of_jobs(lambda jobs: jobs.of_key(id, caller.tenant, caller.key_id))


def _refuse_ended(job: Job) -> None:
    """Raises CallerError, whose status no client retries."""
    from gateway.batch.jobs import ENDED

    if job.state in ENDED:
        raise CallerError(f"{job.id} can't be canceled: its processing has ended")


def _answer(job: Job, services: Services) -> Answer:
    from gateway.batch.view import message_batch_object

    return 200, [JSON], msgspec.json.encode(message_batch_object(job, services.clock()))
