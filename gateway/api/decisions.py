"""GET /v1/decisions/{id} explains a decision; POST /v1/feedback takes a client's feedback on its answer."""

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
    "response_id": re.compile(r"[\x20-\x7e]{1,512}"),  # an upstream's own form
    "request_id": re.compile(r"req_[\w.:-]{1,200}"),
}
"""The form of each kind of id; no other id can exist."""
OURS = frozenset({"label", "reference"})
"""Sources that only an admin's key may use, since operators' labels and certified floors rest on them."""


class Feedback(msgspec.Struct, forbid_unknown_fields=True):
    """A client's feedback on an answer, which any one of three ids names."""

    decision_id: str = ""
    response_id: str = ""
    request_id: str = ""
    score: float | None = None
    label: str = ""
    comment: str = ""
    source: str = "user"


async def get_decision(request: Request, id: str) -> Answer:
    """Explain a decision, named by its own id or that of its response or request. Other tenants' are hidden."""
    caller, services = request.caller(), request.services
    tenant = None if caller.admin else caller.tenant
    record = await services.journal.decision(id, tenant)
    if record is None:
        raise NotFound(f"No decision has the id '{id}'.")
    return 200, [JSON], msgspec.json.encode(decision_view(record))


async def post_feedback(request: Request, _: str) -> Answer:
    """Score or label an answer.

    Answers once the feedback would survive a power loss. An unknown id is accepted, since its decision may not have
    reached the journal yet, or come from another replica. An id of an impossible form is answered with 404.
    """
    caller, services = request.caller(), request.services
    try:
        feedback = msgspec.json.decode(request.body, type=Feedback)
    except BAD_JSON as error:
        raise CallerError(f"feedback: {error}", code="invalid_feedback") from None
    for name, form in FORMS.items():
        id = getattr(feedback, name)
        if id and not form.fullmatch(id):
            raise NotFound(f"{id[:80]!r} is not a valid {name}.", param=name)
    if feedback.score is None and not feedback.label and not feedback.comment:
        raise CallerError("feedback needs a score, a label or a comment", param="score")
    if max(len(feedback.label), len(feedback.source)) > MAX_LABEL or len(feedback.comment) > MAX_COMMENT:
        raise CallerError(
            f"label and source are at most {MAX_LABEL} characters, comment {MAX_COMMENT}", param="comment"
        )
    if feedback.source in OURS and not caller.admin:
        raise CallerError(f"this key may not give feedback with the source '{feedback.source}'", param="source")
    record = FeedbackRecord(
        id=new_id("fb"),
        time_s=services.clock(),
        tenant=ANY_TENANT if caller.admin else caller.tenant,
        decision_id=feedback.decision_id,
        response_id=feedback.response_id,
        request_id=feedback.request_id,
        score=feedback.score,
        label=feedback.label,
        comment=feedback.comment,
        source=feedback.source,
    )
    await record_feedback(services.spool, record)
    services.online.feedback(record)
    return 200, [JSON], msgspec.json.encode({"id": record.id, "object": "feedback"})
