"""Spend against budgets, and changes to tenants' budgets while the gateway runs."""

from __future__ import annotations

import time
from collections import defaultdict

from fastapi import APIRouter

from gateway.admin.actor import Actor
from gateway.admin.changes import change, database, remove
from gateway.admin.guard import Admin, Services, Viewer
from gateway.admin.services import AdminServices
from gateway.admin.shapes.access import Period, RouteLimit, Source, Spent, Tenant, TenantWanted
from gateway.admin.shapes.common import Applied
from gateway.config.types import TenantConfig
from gateway.errors import CallerError
from gateway.key_check import name_fault
from gateway.money.ledger import period_start

router = APIRouter(prefix="/admin", tags=["tenants"])


class Spending:
    """Spend since the beginning of a period. Each sum is queried once per instance; make one per request."""

    def __init__(self, services: AdminServices) -> None:
        self._store = services.store
        self._totals: dict[tuple[str, float], dict[str, tuple[int, int]]] = {}
        self.now_s = time.time()

    def by(self, field: str, start_s: float) -> dict[str, tuple[int, int]]:
        """Requests and nano-dollars of each key_id, tenant or route since then."""
        if (field, start_s) not in self._totals:
            self._totals[field, start_s] = self._store.spend_by(field, start_s)
        return self._totals[field, start_s]

    def of(self, field: str, name: str, start_s: float) -> float:
        """US dollars of one key_id, tenant or route since then."""
        _, cost_nanousd = self.by(field, start_s).get(name, (0, 0))
        return cost_nanousd / 1e9


def spent_of(spending: Spending, field: str, name: str, period: Period, budget_usd: float | None) -> Spent:
    """Spend and budget of a key, tenant or route in the running period."""
    since_s = period_start(period, spending.now_s)
    spent = spending.of(field, name, since_s)
    share = None if budget_usd is None else spent / budget_usd if budget_usd > 0 else 1.0
    return Spent(period=period, since_s=since_s, spent_usd=spent, budget_usd=budget_usd, used_share=share)


def tenants(services: AdminServices) -> list[Tenant]:
    """Configured tenants and those seen in this month's traffic, by name."""
    stated = {one.name: one for one in services.current.auth.tenants}
    in_config = services.config.auth.keys
    in_file = {one.name for one in services.config.auth.tenants}
    with database():
        spending = Spending(services)
        month_s = period_start("month", spending.now_s)
        month = spending.by("tenant", month_s)
        keys: defaultdict[str, int] = defaultdict(int)
        for tenant in (*(one.tenant for one in services.store.keys(revoked=False)), *(one.tenant for one in in_config)):
            keys[tenant] += 1
        versions, values = services.store.setting_numbers("tenant:"), services.store.latest_settings()
    names = sorted({*stated, *month, *keys})
    return [
        Tenant(
            name=name,
            source=_source(name in in_file, values.get(f"tenant:{name}") is not None, name in stated),
            keys=keys[name],
            spent=_spent(spending, stated.get(name), name),
            month_usd=spending.of("tenant", name, month_s),
            month_requests=month.get(name, (0, 0))[0],
            setting_version=versions.get(f"tenant:{name}", 0),
        )
        for name in names
    ]


def put_tenant(services: AdminServices, who: Actor, name: str, wanted: TenantWanted) -> Applied:
    """Set a tenant's budget over all of its keys. Raises Conflict or CallerError."""
    if why := name_fault(name):
        raise CallerError(f"a tenant's name {why}", param="name", status=422)
    value = {"budget_usd": wanted.budget_usd, "budget_period": wanted.budget_period}
    return change(services, who, f"tenant:{name}", value, wanted.version)


def remove_tenant(services: AdminServices, who: Actor, name: str, version: int) -> Applied:
    """Undo all changes to a tenant. Raises NotFound where nothing was changed, or Conflict."""
    return remove(services, who, f"tenant:{name}", version)


def route_limits(services: AdminServices) -> list[RouteLimit]:
    """Limits of all routes, in the order of the configuration."""
    with database():
        spending = Spending(services)
        return [
            RouteLimit(
                route=one.name, rpm=one.rpm, tpm=one.tpm,
                spent=spent_of(spending, "route", one.name, "day", one.budget_usd_per_day),
            )
            for one in services.current.routes
        ]  # fmt: skip


def _spent(spending: Spending, stated: TenantConfig | None, name: str) -> Spent:
    period: Period = stated.budget_period if stated is not None else "month"
    return spent_of(spending, "tenant", name, period, stated.budget_usd if stated is not None else None)


def _source(in_file: bool, here: bool, stated: bool) -> Source:
    if in_file:
        return "file, changed here" if here else "file"
    return "here" if here and stated else "seen"


@router.get("/tenants")
def get_tenants(services: Services, who: Viewer) -> list[Tenant]:
    """List tenants: those configured, and those seen in the traffic of this month."""
    return tenants(services)


@router.put("/tenants/{name:path}")
def put_one(services: Services, who: Admin, name: str, wanted: TenantWanted) -> Applied:
    """Set the budget of a tenant."""
    return put_tenant(services, who, name, wanted)


@router.delete("/tenants/{name:path}")
def delete_one(services: Services, who: Admin, name: str, version: int) -> Applied:
    """Undo all changes to a tenant, so that the configuration file's entry, if any, is in force again."""
    return remove_tenant(services, who, name, version)


@router.get("/limits")
def get_limits(services: Services, who: Viewer) -> list[RouteLimit]:
    """Limits of the routes, and their spend today."""
    return route_limits(services)
