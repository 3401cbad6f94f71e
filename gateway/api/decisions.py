"""GET /v1/decisions/{id} explains a decision; POST /v1/feedback says what its answer was worth."""

from __future__ import annotations

import re

import msgspec

from gateway.asgi import Answer, Request
from gateway.errors import CallerError, NotFound
from gateway.journal.durable import record_feedback
from gateway.journal.record import ANY_TENANT, FeedbackRecord, new_id
from gateway.journal.view import decision_view
from gateway.reply import JSON
from gateway.wire.chunk import BAD_JSON

MAX_LABEL = 200
MAX_COMMENT = 4000
FORMS = {
    "decision_id": re.compile(r"dec_[\w.:-]{1,200}"),
    "response_id": re.compile(r"[\x20-\x7e]{1,512}"),  # an upstream's own word
    "request_id": re.compile(r"req_[\w.:-]{1,200}"),
}
"""Of ids that there can be."""
OURS = frozenset({"label", "reference"})
"""Sources that count for more than a client's word: what an operator labelled, what a certified floor rests on."""


class Feedback(msgspec.Struct, forbid_unknown_fields=True):
    """What a client may say of an answer, named by any one of three ids."""

    decision_id: str = ""
    response_id: str = ""
    request_id: str = ""
    score: float | None = None
    label: str = ""
    comment: str = ""
    source: str = "user"


async def get_decision(request: Request, id: str) -> Answer:
    """Explain a decision, by its own id or that of its response or request. Another tenant's is not found."""
    caller, services = request.caller(), request.services
    tenant = None if caller.admin else caller.tenant
    record = await services.journal.decision(id, tenant)
    if record is None:
        raise NotFound(f"No decision has the id '{id}'.")
    return 200, [JSON], msgspec.json.encode(decision_view(record))


async def post_feedback(request: Request, _: str) -> Answer:
    """Score or label an answer.

    Answers once the feedback would survive a power loss. An id that nobody knows is no fault: its decision may be on
    its way to the journal still, from another replica too. One that there can't be is not found.
    """
    caller, services = request.caller(), request.services
    try:
        said = msgspec.json.decode(request.body, type=Feedback)
    except BAD_JSON as error:
        raise CallerError(f"feedback: {error}", code="invalid_feedback") from None
    for name, form in FORMS.items():
        id = getattr(said, name)
        if id and not form.fullmatch(id):
            raise NotFound(f"No {name} looks like {id[:80]!r}.", param=name)
    if said.score is None and not said.label and not said.comment:
        raise CallerError("feedback needs a score, a label or a comment", param="score")
    if max(len(said.label), len(said.source)) > MAX_LABEL or len(said.comment) > MAX_COMMENT:
        raise CallerError(
            f"label and source are at most {MAX_LABEL} characters, comment {MAX_COMMENT}", param="comment"
        )
    if said.source in OURS and not caller.admin:
        raise CallerError(f"this key may not give feedback with the source '{said.source}'", param="source")
    record = FeedbackRecord(
        id=new_id("fb"),
        time_s=services.clock(),
        tenant=ANY_TENANT if caller.admin else caller.tenant,
        decision_id=said.decision_id,
        response_id=said.response_id,
        request_id=said.request_id,
        score=said.score,
        label=said.label,
        comment=said.comment,
        source=said.source,
    )
    await record_feedback(services.spool, record)
    services.online.feedback(record)
    return 200, [JSON], msgspec.json.encode({"id": record.id, "object": "feedback"})
