"""The page of certificates of quality floors."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from gateway.admin import certificates as admin_certificates
from gateway.admin.changes import database, setting
from gateway.admin.guard import Actor, operator, services_of, viewer
from gateway.admin.shapes.certificates import CertificateAnswer, CertificateWanted
from gateway.dashboard.forms import Fields, checked, picked, shaped
from gateway.dashboard.page import render

router = APIRouter()


@router.get("/certificates")
def show(request: Request, who: Annotated[Actor, Depends(viewer)], route: str = "") -> Response:
    """Certificates of one route or all, newest first."""
    return _page(request, who, route)


@router.post("/certificates/{route:path}/issue")
def issue(request: Request, who: Annotated[Actor, Depends(operator)], route: str, fields: Fields) -> Response:
    """Certify a quality floor, or show what evidence is missing."""
    services = services_of(request)
    given = {**picked(fields, CertificateWanted), **checked(fields, "apply")}
    answer = admin_certificates.issue(services, who, route, shaped(CertificateWanted, given))
    said = "" if answer.refusal else "The certificate is issued."
    return _page(request, who, route, said=said, answer=answer)


@router.post("/certificates/{id}/revoke")
def revoke(request: Request, who: Annotated[Actor, Depends(operator)], id: str) -> Response:
    """Revoke a certificate."""
    revoked = admin_certificates.revoke(services_of(request), who, id)
    return _page(request, who, "", said=f"The certificate of {revoked.route} is revoked.")


def _page(
    request: Request, who: Actor, route: str, said: str = "", answer: CertificateAnswer | None = None
) -> Response:
    services = services_of(request)
    models = {one.name: list(one.models) for one in services.current.routes}
    chosen = route or next(iter(models), "")
    with database():
        version = setting(services, f"route:{chosen}").version
    context = {
        "title": "Certificates", "found": admin_certificates.certificates(services, route), "route": route,
        "routes": list(models), "answer": answer, "chosen": chosen, "models": models.get(chosen, []),
        "version": version,
    }  # fmt: skip
    return render(request, who, "certificates.html", context, said=said)
