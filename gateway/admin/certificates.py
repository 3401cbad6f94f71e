"""Certificates of quality floors: issuing, watching and revoking them.

Two kinds are listed together. A route whose cascade is `certified` maintains its own certificate
(gateway.learn.promises), which is only displayed here. For any other route a floor can be certified for its cost
weight, from its randomised traffic (gateway.learn.knob_floor). The two rest on different evidence, so neither can
replace the other.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np
import sqlalchemy as sa
from fastapi import APIRouter

from gateway.admin.actor import Actor
from gateway.admin.changes import Conflict, database, setting
from gateway.admin.frontier import WEIGHTS
from gateway.admin.guard import Operator, Services, Viewer
from gateway.admin.knobs import apply, knobs_in_force
from gateway.admin.rounds import latest_log, policy_of, route_of
from gateway.admin.services import AdminServices
from gateway.admin.shapes.certificates import CertificateAnswer, CertificateView, CertificateWanted
from gateway.admin.shapes.common import Interval, Refusal
from gateway.admin.shapes.knobs import KnobChange
from gateway.errors import CallerError, NotFound
from gateway.journal.record import new_id
from gateway.journal.rollup_tables import certificates as table
from gateway.journal.upsert import put_row
from gateway.learn.dataset import Log, NothingLogged
from gateway.learn.knob_floor import ASSUMPTION, BOUND, Unsupported, certify_knob, coverage, drifted
from gateway.learn.promises import standings
from gateway.learn.whatif import decided, widened
from routers.types import Undecided

router = APIRouter(prefix="/admin/certificates", tags=["certificates"])
WATCH = Actor("certificate", "admin")
"""The actor in the audit log where drift tightens or withdraws an enforced certificate."""
_STANDS: dict[str, Literal["valid", "tighten", "withdrawn"]] = {
    "valid": "valid", "tightened": "tighten", "withdrawn": "withdrawn",
}  # fmt: skip


def certificates(services: AdminServices, route: str = "") -> list[CertificateView]:
    """Certificates of one route, or of all: newest first, revoked ones last. Raises NotFound."""
    query = sa.select(table.c.payload).order_by(table.c.issued_s.desc())
    if route:
        route_of(services, route)
        query = query.where(table.c.route == route)
    with database(), services.store.engine.connect() as connection:
        held = [CertificateView(**msgspec.json.decode(text)) for text in connection.execute(query).scalars()]
    with database():
        kept = [_of_cascade(one) for one in standings(services.current, services.store) if route in ("", one["route"])]
    shown = [one for one in kept if one is not None] + held
    return sorted(shown, key=lambda one: (one.standing == "revoked", -one.issued_s))


def issue(services: AdminServices, who: Actor, route: str, wanted: CertificateWanted) -> CertificateAnswer:
    """Certify the cheapest cost weight that keeps the floor, or say what evidence is missing.

    With `apply` the cost weight is put into force. Raises NotFound, Conflict or CallerError.
    """
    stated = route_of(services, route)
    if stated.cascade == "certified":
        raise CallerError(f"route {route!r} has a certified cascade, which issues its own certificate", status=409,
                          code="certified_cascade")  # fmt: skip
    if wanted.reference and wanted.reference not in stated.models:
        raise CallerError(f"{wanted.reference!r} is not a model of the route {route!r}", param="reference", status=422)
    for name in ("floor", "confidence"):
        if not 0.0 < getattr(wanted, name) < (1.0 if name == "confidence" else 1.0 + 1e-12):
            most = "less than 1" if name == "confidence" else "at most 1"
            raise CallerError(f"{name} must be more than 0 and {most}", param=name, status=422)
    with database():
        try:
            log = latest_log(services, route)
        except NothingLogged as none:
            return CertificateAnswer(refusal=Refusal(message=str(none)))
        view = _certified(services, who, route, wanted, log)
    if not isinstance(view, CertificateView):
        return CertificateAnswer(refusal=view, rows=int(log.labelled.sum()))
    if wanted.apply:
        knobs = knobs_in_force(route_of(services, route)).model_dump()
        changed = {**knobs, "cost_weight": view.cost_weight, "min_quality": None}
        why = f"certified: {wanted.floor:.0%} of {view.reference} at {wanted.confidence:.0%}"
        if wanted.version is None:
            raise CallerError("version is required with apply: the route's setting_version as it was read",
                              param="version", status=422)  # fmt: skip
        apply(
            services, who, route, KnobChange.model_validate({"knobs": changed, "version": wanted.version, "why": why})
        )
    with database():
        _keep(services, view)
        services.store.note(who.name, "certificate.issue", view.id, {"route": route, "floor": view.floor})
    return CertificateAnswer(certificate=view, rows=view.rows)


def revoke(services: AdminServices, who: Actor, id: str) -> CertificateView:
    """Revoke a certificate; the route's knobs stay as they are. Raises NotFound."""
    with database():
        view = _find(services, id)
        if view.standing != "revoked":
            view = view.model_copy(update={"standing": "revoked", "standing_since_s": time.time(), "enforced": False})
            _keep(services, view)
            services.store.note(who.name, "certificate.revoke", id, {"route": view.route})
    return view


def watch(services: AdminServices, route: str, log: Log) -> None:
    """Update the route's certificates from the decisions since: their coverage, and whether traffic has drifted."""
    for view in certificates(services, route):
        if view.standing in ("valid", "tighten") and view.kind == "knob" and view.reference in log.models:
            fresh = log.rows(np.array([record.time_s > view.issued_s for record in log.records], bool))
            _keep(services, _watched(services, view, fresh))


def _watched(services: AdminServices, view: CertificateView, fresh: Log) -> CertificateView:
    if not len(fresh):
        return view
    reference = fresh.models.index(view.reference)
    found, says = coverage(fresh, reference), drifted(fresh, reference, view.floor, _expected(view))
    told: dict[str, Any] = {"coverage_rows": int(fresh.labelled.sum())}
    if found is not None:
        told |= {"coverage": Interval(**found.as_dict()), "held": found.value >= view.floor}
    if says != view.standing and says != "valid":
        told |= {"standing": says, "standing_since_s": time.time()}
        if view.enforced:
            told["note"] = _enforced(services, view, says)
        services.store.note(WATCH.name, f"certificate.{says}", view.id, {"route": view.route})
    return view.model_copy(update=told)


def _expected(view: CertificateView) -> float:
    return float("nan") if view.mean_expected is None else view.mean_expected


def _enforced(services: AdminServices, view: CertificateView, says: str) -> str:
    """Lower the cost weight, by one step to tighten or to 0 to withdraw. Returns a note on what was done."""
    safer = [weight for weight in WEIGHTS if view.cost_weight is not None and weight < view.cost_weight]
    weight = max(safer, default=0.0) if says == "tighten" else 0.0
    knobs = {**knobs_in_force(route_of(services, view.route)).model_dump(), "cost_weight": weight}
    version = setting(services, f"route:{view.route}").version
    change = {"knobs": knobs, "version": version, "why": f"certificate {view.id}: {says}"}
    try:
        apply(services, WATCH, view.route, KnobChange.model_validate(change))
    except (Conflict, CallerError) as fault:
        return f"the cost weight could not be lowered: {fault.message}"
    return f"this certificate has since set the cost weight to {weight:g}"


def _certified(
    services: AdminServices, who: Actor, route: str, wanted: CertificateWanted, log: Log
) -> CertificateView | Refusal:
    policy = policy_of(services, route, {})
    log = widened(log, [one.model for one in policy.candidates])
    reference = log.models.index(wanted.reference) if wanted.reference else _dearest(log)
    try:
        policies = {
            weight: decided(policy_of(services, route, {"cost_weight": weight, "min_quality": None}), log)
            for weight in WEIGHTS
        }
    except (ValueError, Undecided) as fault:
        return Refusal(message=f"the router's settings can't be evaluated: {fault}")
    found = certify_knob(log, policies, reference, wanted.floor, wanted.confidence)
    if isinstance(found, Unsupported):
        missing = found.rows_needed - found.rows if found.rows_needed else None
        about = f"; about {missing} more scored decisions would be enough" if missing else ""
        return Refusal(message=f"{found.reason}{about}", calls=missing)
    now_s = time.time()
    ids = "".join(record.id for record, known in zip(log.records, log.labelled, strict=True) if known)
    return CertificateView(
        id=new_id("cert"), route=route, issued_s=now_s, actor=who.name, floor=wanted.floor,
        confidence=wanted.confidence, reference=log.models[reference], cost_weight=found.cost_weight,
        p_value=found.p_value, quality_share=found.quality_share, cost_usd=found.cost_usd,
        reference_cost_usd=found.reference_cost_usd, rows=found.rows, data_since_s=log.records[0].time_s,
        data_until_s=log.records[-1].time_s, data_checksum=hashlib.sha256(ids.encode()).hexdigest()[:16], bound=BOUND,
        assumption=ASSUMPTION, enforced=wanted.apply, standing="valid", standing_since_s=now_s, coverage=None,
        coverage_rows=0, held=None,
        mean_expected=found.mean_expected if found.mean_expected == found.mean_expected else None,
    )  # fmt: skip


def _dearest(log: Log) -> int:
    """Index of the model with the highest mean cost: the model that one pays for its quality."""
    costs = np.where(np.isfinite(log.mean_cost_usd()), log.mean_cost_usd(), -1.0)
    return int(costs.argmax())


def _of_cascade(told: Mapping[str, Any]) -> CertificateView | None:
    """A certified cascade's certificate; None where the cascade has neither a valid nor a withdrawn one."""
    stands, certificate = _STANDS.get(told["state"]), told["certificate"]
    if stands is None:
        return None
    since_s, found = told["since_s"] or 0.0, told["coverage"] or {}
    covered = None
    if found.get("quality_share") is not None:
        covered = Interval(value=found["quality_share"], low=found["quality_low"], high=found["quality_high"])
    fields: Mapping[str, Any] = certificate or {}
    return CertificateView(
        id=f"cascade:{told['route']}", kind="cascade", route=told["route"], issued_s=since_s, actor="learn",
        floor=told["floor"], confidence=told["confidence"], reference=told["reference"], cost_weight=None,
        accept_at=told["accept_at"], p_value=fields.get("p_value", 1.0), quality_share=fields.get("quality_share", 0.0),
        cost_usd=fields.get("cost_usd", 0.0), reference_cost_usd=fields.get("reference_cost_usd", 0.0),
        rows=told["rows"], data_since_s=0.0, data_until_s=since_s, data_checksum=fields.get("data_checksum", ""),
        bound="betting test on a fixed grid of thresholds", assumption=told["assumption"] or "", enforced=True,
        standing=stands, standing_since_s=since_s, coverage=covered, coverage_rows=found.get("measured", 0),
        held=None if covered is None else covered.value >= told["floor"], note=told["why"],
    )  # fmt: skip


def _keep(services: AdminServices, view: CertificateView) -> None:
    row = {"id": view.id, "route": view.route, "issued_s": view.issued_s, "standing": view.standing}
    with services.store.engine.begin() as connection:
        put_row(connection, table, {**row, "payload": view.model_dump_json()})


def _find(services: AdminServices, id: str) -> CertificateView:
    with services.store.engine.connect() as connection:
        text = connection.execute(sa.select(table.c.payload).where(table.c.id == id)).scalar()
    if text is None:
        raise NotFound(f"no certificate has the id {id!r}")
    return CertificateView(**msgspec.json.decode(text))


@router.get("")
def get_certificates(services: Services, who: Viewer, route: str = "") -> list[CertificateView]:
    """List certificates of quality floors, newest first."""
    return certificates(services, route)


@router.post("/{route:path}", status_code=201)
def post_certificate(services: Services, who: Operator, route: str, wanted: CertificateWanted) -> CertificateAnswer:
    """Certify a quality floor for a route, or report what evidence is missing."""
    return issue(services, who, route, wanted)


@router.delete("/{id}")
def delete_certificate(services: Services, who: Operator, id: str) -> CertificateView:
    """Revoke a certificate."""
    return revoke(services, who, id)
