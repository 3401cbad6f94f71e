"""The pages of decisions: their list, and one decision with its explanation, replay and label."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from gateway.admin import decisions as admin_decisions
from gateway.admin import labels
from gateway.admin.guard import Actor, operator, services_of, viewer
from gateway.admin.shapes.decisions import DecisionRow, Explained, Replayed, ReplayWanted
from gateway.admin.shapes.labels import LabelWanted
from gateway.dashboard.download import MOST_ROWS, PAGE_ROWS, as_csv, pages
from gateway.dashboard.forms import Fields, picked, shaped
from gateway.dashboard.page import render
from gateway.errors import CallerError
from gateway.journal.search import DecisionFilter

router = APIRouter()
PAGE = 50
MOST_CHOICES = 300
"""Most choices of a filter field; where there are more values, as with many keys, the field is a text input."""
SPANS_S = {"": 0.0, "hour": 3600.0, "day": 86400.0, "week": 7 * 86400.0}
OUTCOMES = (
    ("", "any outcome"), ("error", "errors"), ("escalated", "escalated"), ("explored", "explored"),
    ("cached", "from the cache"), ("ok", "neither error nor cached"), ("audit", "cache audits"),
)  # fmt: skip
WORDS = ("route", "tenant", "answered_model", "key_id", "outcome")
NUMBERS = ("min_cost_usd", "max_cost_usd")


@router.get("/decisions")
def show_all(request: Request, who: Annotated[Actor, Depends(viewer)], cursor: str = "", id: str = "") -> Response:
    """A page of decisions, newest first. With an id: a redirect to its decision."""
    if id.strip():
        return RedirectResponse(f"/decisions/{quote(id.strip(), safe='')}", 303)
    services, asked = services_of(request), dict(request.query_params)
    found = admin_decisions.search(services, _filter(asked), cursor, PAGE)
    kept = {name: value for name, value in asked.items() if value and name != "cursor"}
    context = {
        "title": "Decisions", "found": found, "asked": asked, "facets": admin_decisions.facets(services),
        "most_choices": MOST_CHOICES, "outcomes": OUTCOMES,
        "further": f"/decisions?{urlencode({**kept, 'cursor': found.next})}" if found.next else "",
        "first": f"/decisions?{urlencode(kept)}" if cursor else "", "filtered": bool(kept),
        "file": f"/decisions.csv?{urlencode(kept)}" if kept else "/decisions.csv", "most": MOST_ROWS,
    }  # fmt: skip
    return render(request, who, "decisions.html", context)


@router.get("/decisions.csv")
def download(request: Request, who: Annotated[Actor, Depends(viewer)]) -> Response:
    """The decisions that match the query's filter, as CSV, newest first."""
    services, wanted = services_of(request), _filter(dict(request.query_params))

    def page(cursor: str) -> tuple[list[DecisionRow], str | None]:
        found = admin_decisions.search(services, wanted, cursor, PAGE_ROWS)
        return found.data, found.next

    return as_csv("decisions", DecisionRow, pages(page))


@router.get("/decisions/{id}")
def show(request: Request, who: Annotated[Actor, Depends(viewer)], id: str) -> Response:
    """One decision."""
    return _page(request, who, id)


@router.post("/decisions/{id}/replay")
def replay(request: Request, who: Annotated[Actor, Depends(operator)], id: str, fields: Fields) -> Response:
    """Decide the request again; nothing is sent to a model."""
    replayed = admin_decisions.replay(services_of(request), id, shaped(ReplayWanted, picked(fields, ReplayWanted)))
    return _page(request, who, id, replayed=replayed, asked=fields)


@router.post("/decisions/{id}/label")
def label(request: Request, who: Annotated[Actor, Depends(operator)], id: str, fields: Fields) -> Response:
    """Score the answer."""
    labels.label(services_of(request), who, id, shaped(LabelWanted, picked(fields, LabelWanted)))
    return _page(request, who, id, said="The label is recorded. Learning reads it from now on.")


def _page(
    request: Request, who: Actor, id: str, said: str = "", replayed: Replayed | None = None,
    asked: dict[str, str] | None = None,
) -> Response:  # fmt: skip
    decision = admin_decisions.explain(services_of(request), id, who)
    context = {
        "title": "Decision", "decision": decision, "replayed": replayed, "asked": asked or {},
        "facts": _facts(decision), "raw": json.dumps(decision.decision, indent=2, ensure_ascii=False, default=str),
    }  # fmt: skip
    return render(request, who, "decision.html", context, said=said)


def _facts(one: Explained) -> list[tuple[str, str]]:
    """Names and values of the decision's properties."""
    return [
        ("Route", one.route), ("Requested model", one.requested_model), ("Tenant", one.tenant), ("Key", one.key_id),
        ("Router", one.router), ("Reason", one.reason), ("Cache", one.cache),
        ("Cascade", " → ".join(one.plan) if len(one.plan) > 1 else ""), ("Verdict", one.verdict),
        ("Request id", one.request_id), ("Response id", one.response_id),
    ]  # fmt: skip


def _filter(asked: dict[str, str]) -> DecisionFilter:
    given: dict[str, Any] = {name: asked[name] for name in WORDS if asked.get(name)}
    for name in NUMBERS:
        if asked.get(name):
            given[name] = _dollars(asked[name], name)
    if asked.get("outcome", "") not in dict(OUTCOMES):
        raise CallerError("there is no outcome of this name", param="outcome")
    if span_s := SPANS_S.get(asked.get("span", ""), 0.0):
        given["since_s"] = time.time() - span_s
    return DecisionFilter(**given)


def _dollars(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise CallerError("a cost must be a number of dollars, 0 or more", status=422, param=name)
    return value
