"""Results of a batch job: the outcome of each prompt, and the files of answers and errors."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Literal, cast

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from gateway.admin.changes import database
from gateway.admin.guard import Operator, Services, Viewer
from gateway.admin.services import AdminServices
from gateway.admin.shapes.batch import BatchAnswer, BatchAnswers
from gateway.batch.files import Files
from gateway.batch.jobs import Item, Jobs
from gateway.errors import NotFound
from gateway.money.prices import usd

router = APIRouter(prefix="/admin/batches", tags=["batches"])
What = Literal["answers", "errors"]


def answers(services: AdminServices, id: str, after: int = -1, limit: int = 50) -> BatchAnswers:
    """Outcomes of the prompts after the index `after`, in input order, as far as the job has got. Raises NotFound."""
    with database():
        jobs = Jobs(services.store.engine)
        jobs.find(id)
        found = [_answer(one) for one in islice(jobs.items(id, after=after), limit)]
    return BatchAnswers(data=found, next=found[-1].place if len(found) == limit else None)


def lines(services: AdminServices, id: str, what: What) -> Iterator[bytes]:
    """The job's file of answers or errors, in its API's format. Raises NotFound where it is missing."""
    with database():
        job, files = Jobs(services.store.engine).find(id), Files(services.store.engine)
        file = job.card.output_file if what == "answers" else job.card.error_file
        if not file:
            raise NotFound(f"job {id} has no file of {what}")
        files.find(file, job.files_of)
    return files.read(file)


def _answer(one: Item) -> BatchAnswer:
    state = cast(Literal["started", "open", "done", "failed"], one.state)
    return BatchAnswer(
        place=one.place, state=state, model=one.model, status=one.status, tries=one.tries,
        cost_usd=usd(one.cost_nanousd), decision_id=one.decision_id,
    )  # fmt: skip


def download(services: AdminServices, id: str, what: What) -> StreamingResponse:
    """The file as a download. Raises NotFound."""
    headers = {
        "content-disposition": f'attachment; filename="{id}_{what}.jsonl"', "cache-control": "no-store",
        "x-content-type-options": "nosniff",
    }  # fmt: skip
    return StreamingResponse(lines(services, id, what), media_type="application/jsonl", headers=headers)


@router.get("/{id}/prompts")
def get_prompts(
    services: Services, who: Viewer, id: str, after: int = -1, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> BatchAnswers:
    """The outcome of each prompt, in the order of the input."""
    return answers(services, id, after, limit)


@router.get("/{id}/files/{what}", response_class=StreamingResponse)
def get_file(services: Services, who: Operator, id: str, what: What) -> StreamingResponse:
    """Download all answers or all errors of a job as JSONL."""
    return download(services, id, what)
