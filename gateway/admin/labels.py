"""Feedback and labels: the queue of decisions to label, most informative first, and the labelling of one."""

from __future__ import annotations

import time
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Query

from gateway.admin.actor import Actor, may
from gateway.admin.changes import database
from gateway.admin.cursors import next_cursor, read_cursor
from gateway.admin.guard import Operator, Services, Viewer
from gateway.admin.rounds import route_of
from gateway.admin.services import AdminServices
from gateway.admin.shapes.decisions import FeedbackRow
from gateway.admin.shapes.labels import FeedbackPage, FeedbackSummary, LabelQueue, LabelWanted, ToLabel
from gateway.errors import CallerError, NotFound
from gateway.journal.insights import insights_of
from gateway.journal.record import FeedbackRecord
from gateway.journal.tables import feedback as said
from gateway.journal.write_feedback import write_feedback

router = APIRouter(prefix="/admin", tags=["labels"])
KIND = "labels"
SOURCE = "label"
_WEEK_S = 7 * 86400.0


def queue(services: AdminServices, who: Actor, route: str = "", limit: int = 20) -> LabelQueue:
    """The queue as it was computed last, without what was labelled since. Decisions with stored text come first.

    A viewer is not shown texts. Raises NotFound where there is no such route.
    """
    if route:
        route_of(services, route)
    with database():
        found = {name: one for name, one in insights_of(services.store, KIND).items() if route in ("", name)}
        waiting = [one for _, told in found.values() for one in told["data"] if one["gain"] is not None]
        done = labelled(services, [one["id"] for one in waiting])
        left = sorted(
            (one for one in waiting if one["id"] not in done), key=lambda one: (not one["has_text"], -one["gain"])
        )
        texts = {one["id"]: _texts(services, who, one["id"]) for one in left[:limit]}
    data = [
        ToLabel(**{name: one[name] for name in ToLabel.model_fields if name in one},
                prompt_text=texts[one["id"]][0], answer_text=texts[one["id"]][1])
        for one in left[:limit]
    ]  # fmt: skip
    weighed = sum(told["weighed"] for _, told in found.values())
    unread = sum(told["without_text"] for _, told in found.values())
    time_s = max((at for at, _ in found.values()), default=None)
    note = "" if found else "not computed yet: the queue is computed within a minute of the first decisions"
    if found and not data:
        note = "no decision waits for a label"
    elif data and weighed == unread:
        note = "the text of these answers is not stored (see the routes' store_text): label them by their ids"
    return LabelQueue(data=data, waiting=weighed, time_s=time_s, without_text=unread, note=note)


def label(services: AdminServices, who: Actor, decision_id: str, wanted: LabelWanted) -> FeedbackRow:
    """Score an answer. A label overrides all other feedback on the answer; a second label replaces the first.

    Raises NotFound, or CallerError (409) where the request was not answered.
    """
    with database():
        record = services.store.decision(decision_id)
        if record is None:
            raise NotFound(f"no decision has the id {decision_id!r}; a new one is in the database within seconds")
        if not record.answered_model:
            raise CallerError("the request got no answer, so there is nothing to label", status=409, code="no_answer")
        given = FeedbackRecord(
            id=f"label_{record.id}", time_s=time.time(), tenant=record.tenant, decision_id=record.id,
            response_id=record.response_id, request_id=record.request_id, score=wanted.score, label=wanted.label,
            comment=wanted.comment, source=SOURCE,
        )  # fmt: skip
        with services.store.engine.begin() as connection:
            write_feedback(connection, [given])
        services.store.note(who.name, "decision.label", record.id, {"score": wanted.score, "label": wanted.label})
        (row,) = [one for one in services.store.feedback(decision_id=record.id) if one["id"] == given.id]
    services.results.pop(f"log:{record.route}", None)
    return FeedbackRow(**row)


def feedback(services: AdminServices, cursor: str = "", limit: int = 100, decision_id: str = "") -> FeedbackPage:
    """A page of feedback, newest first; of one decision where `decision_id` is given."""
    before = read_cursor(cursor)
    with database():
        rows = [
            FeedbackRow(**row) for row in services.store.feedback(decision_id=decision_id, before=before, limit=limit)
        ]
    return FeedbackPage(data=rows, next=next_cursor(rows, limit))


def feedback_summary(services: AdminServices) -> FeedbackSummary:
    """Summary of the feedback of the last seven days."""
    since_s = time.time() - _WEEK_S
    recent = said.c.time_s >= since_s
    by_source = sa.select(said.c.source, sa.func.count(), sa.func.count(said.c.score), sa.func.sum(said.c.score)).where(
        recent
    )
    orphans = sa.select(sa.func.count()).where(recent, said.c.decision_id.is_(None))
    with database(), services.store.engine.connect() as connection:
        rows = connection.execute(by_source.group_by(said.c.source)).all()
        unattached = int(connection.execute(orphans).scalar_one())
    scored, total = sum(int(row[2]) for row in rows), sum(float(row[3] or 0.0) for row in rows)
    return FeedbackSummary(
        by_source={str(row[0]): int(row[1]) for row in rows}, scored=scored,
        mean_score=total / scored if scored else None, unattached=unattached,
    )  # fmt: skip


def labelled(services: AdminServices, ids: list[str]) -> set[str]:
    """The ids, of those given, whose decisions have been scored by feedback."""
    query = sa.select(said.c.decision_id).where(said.c.decision_id.in_(ids), said.c.score.is_not(None))
    with services.store.engine.connect() as connection:
        return set(connection.execute(query).scalars())


def _texts(services: AdminServices, who: Actor, id: str) -> tuple[str, str]:
    record = services.store.decision(id) if may(who, "operator") else None
    return (record.prompt_text, record.answer_text) if record is not None else ("", "")


@router.get("/labels")
def get_queue(
    services: Services, who: Viewer, route: str = "", limit: Annotated[int, Query(ge=1, le=200)] = 20
) -> LabelQueue:
    """List the answers that are most useful to label next."""
    return queue(services, who, route, limit)


@router.put("/labels/{decision_id}")
def put_label(services: Services, who: Operator, decision_id: str, wanted: LabelWanted) -> FeedbackRow:
    """Score an answer."""
    return label(services, who, decision_id, wanted)


@router.get("/feedback")
def get_feedback(
    services: Services, who: Viewer, cursor: str = "", decision_id: str = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> FeedbackPage:
    """List feedback, newest first; `cursor` is `next` of the page before."""
    return feedback(services, cursor, limit, decision_id)


@router.get("/feedback/summary")
def get_summary(services: Services, who: Viewer) -> FeedbackSummary:
    """Summary of the feedback of the last seven days."""
    return feedback_summary(services)
