"""Quality floors with their certificates: what is promised, on what data, and whether it held since."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from gateway.admin import certificates as promises
from gateway.admin import knobs
from gateway.admin.guard import Actor, desk_of, operator, viewer
from gateway.admin.shapes.certificates import CertificateAnswer, CertificateWanted
from gateway.dashboard.forms import Fields, checked, picked, shaped
from gateway.dashboard.page import render

router = APIRouter()


@router.get("/certificates")
def show(request: Request, who: Annotated[Actor, Depends(viewer)], route: str = "") -> Response:
    """Newest first, of all routes or one."""
    return _page(request, who, route)


@router.post("/certificates/{route}/issue")
def issue(request: Request, who: Annotated[Actor, Depends(operator)], route: str, fields: Fields) -> Response:
    """A certificate, or what it would take."""
    desk = desk_of(request)
    given = {**picked(fields, CertificateWanted), **checked(fields, "apply")}
    if given["apply"]:
        given["version"] = knobs.route_detail(desk, route).setting_version
    answer = promises.issue(desk, who, route, shaped(CertificateWanted, given))
    said = "" if answer.refusal else "The certificate is issued."
    return _page(request, who, route, said=said, answer=answer)


@router.post("/certificates/{id}/revoke")
def revoke(request: Request, who: Annotated[Actor, Depends(operator)], id: str) -> Response:
    """It promises nothing any more."""
    revoked = promises.revoke(desk_of(request), who, id)
    return _page(request, who, "", said=f"The certificate of {revoked.route} is revoked.")


def _page(
    request: Request, who: Actor, route: str, said: str = "", answer: CertificateAnswer | None = None
) -> Response:
    desk = desk_of(request)
    routes = [one.name for one in desk.config.routes]
    context = {
        "title": "Certificates", "found": promises.certificates(desk, route), "route": route, "routes": routes,
        "answer": answer, "models": {one.name: list(one.models) for one in desk.config.routes},
    }  # fmt: skip
    return render(request, who, "certificates.html", context, said=said)
