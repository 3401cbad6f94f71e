from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from pydantic import BaseModel

from gateway.admin import audit, knobs, models, tenants
from gateway.admin.actor import Actor
from gateway.admin.changes import Conflict
from gateway.admin.services import AdminServices
from gateway.admin.shapes.access import TenantWanted
from gateway.admin.shapes.models import ModelWanted, ProviderWanted
from gateway.config.overlay import FILE, read_secrets
from gateway.config.types import ModelConfig, ProviderConfig
from gateway.errors import CallerError
from tests.gateway.admin.traffic import recent, write

ADMIN = Actor("ann", "admin")
SECRET = "sk-very-secret-indeed"


def provider(**stated: Any) -> ProviderWanted:
    return ProviderWanted(**{"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "version": 0, **stated})


def card(admin: AdminServices, name: str) -> Any:
    return next(one for one in models.fleet(admin).providers if one.name == name)


def test_a_secret_is_never_shown(admin: AdminServices) -> None:
    """It is in no page, audit row, database or workers' file, only in a file of mode 0600."""
    models.put_provider(admin, ADMIN, "new", provider(api_key=SECRET, headers={"x-team": SECRET + "2"}))
    shown = models.fleet(admin).model_dump_json() + json.dumps([one.model_dump() for one in audit.audit_log(admin)])
    database = b"".join(path.read_bytes() for path in admin.run_dir.parent.glob("journal.db*"))
    settings = (admin.run_dir / "settings.json").read_bytes()
    assert SECRET not in shown and SECRET.encode() not in database + settings
    assert (card(admin, "new").api_key_set, card(admin, "new").header_names) == (True, ["x-team"])
    assert (admin.run_dir / FILE).stat().st_mode & 0o777 == 0o600
    held = next(one for one in admin.current.providers if one.name == "new")
    assert held.api_key == SECRET and held.headers["x-team"] == SECRET + "2"
    assert SECRET not in repr(held)


def test_an_omitted_secret_stays_and_an_empty_one_is_removed(admin: AdminServices) -> None:
    """Of an environment variable only the name is stored."""
    models.put_provider(admin, ADMIN, "new", provider(api_key=SECRET))
    models.put_provider(admin, ADMIN, "new", provider(max_connections=7, version=1))
    held = next(one for one in admin.current.providers if one.name == "new")
    assert (held.api_key, held.max_connections) == (SECRET, 7)
    models.put_provider(admin, ADMIN, "new", provider(api_key="", version=2))
    assert not card(admin, "new").api_key_set
    kept = len(read_secrets(admin.run_dir))
    models.put_provider(admin, ADMIN, "new", provider(api_key="${HOME}", version=3))
    assert len(read_secrets(admin.run_dir)) == kept
    assert next(one for one in admin.current.providers if one.name == "new").api_key == str(Path.home())


def test_a_changed_provider_keeps_the_files_secret(admin: AdminServices) -> None:
    """Once the change is removed, the configuration file's entry is in force again."""
    models.put_provider(admin, ADMIN, "acme", provider(base_url="http://127.0.0.1:10/v1"))
    held = admin.current.providers[0]
    assert (held.api_key, held.base_url) == ("sk-file", "http://127.0.0.1:10/v1")
    assert card(admin, "acme").source == "file, changed here"
    models.remove_provider(admin, ADMIN, "acme", 1)
    assert admin.current.providers == admin.config.providers and card(admin, "acme").source == "file"


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (provider(base_url="ftp://x"), "base_url"), (provider(base_url=""), "base_url"),
        (provider(kind="local", base_url=""), "base_url"), (provider(max_connections=0), "max_connections"),
        (provider(headers={"x": None}), "headers"), (provider(headers={"bad name": "x"}, api_key="k"), "headers"),
    ],
)  # fmt: skip
def test_an_invalid_provider_is_refused_whole(
    admin: AdminServices, wanted: ProviderWanted, field: str
) -> None:
    """The error names the field, and nothing of the change is stored."""
    with pytest.raises(CallerError) as refused:
        models.put_provider(admin, ADMIN, "new", wanted)
    assert field in str(refused.value.param)
    assert admin.current == admin.config and audit.audit_log(admin) == []


def test_a_model_joins_and_leaves_its_routes_in_one_step(admin: AdminServices) -> None:
    """The configuration and the pages follow; a provider that is in use can't be removed."""
    models.put_provider(admin, ADMIN, "new", provider(api_key=SECRET))
    models.put_model(admin, ADMIN, "third", ModelWanted(provider="new", routes=["auto"], version=0))
    assert admin.current.routes[0].models == ["small", "large", "third"]
    told = models.fleet(admin).models[-1]
    assert (told.name, told.source, told.routes, told.health) == ("third", "here", ["auto"], "unknown")
    with pytest.raises(CallerError, match="no provider named 'new'"):
        models.remove_provider(admin, ADMIN, "new", 1)
    models.put_model(admin, ADMIN, "small", ModelWanted(provider="acme", input_usd_per_mtok=9, routes=[], version=0))
    assert admin.current.routes[0].models == ["large", "third"]
    assert admin.current.models[0].input_usd_per_mtok == 9.0
    with pytest.raises(Conflict):
        models.put_model(admin, ADMIN, "third", ModelWanted(provider="new", version=0))
    models.remove_model(admin, ADMIN, "third", 1)
    models.remove_model(admin, ADMIN, "small", 1)
    assert admin.current.routes == admin.config.routes and admin.current.models == admin.config.models


def test_a_route_keeps_at_least_one_model(admin: AdminServices) -> None:
    """Its last model can't be removed, and a model can't join an unknown route."""
    models.put_model(admin, ADMIN, "small", ModelWanted(provider="acme", routes=[], version=0))
    with pytest.raises(CallerError, match="names no model"):
        models.put_model(admin, ADMIN, "large", ModelWanted(provider="acme", routes=[], version=0))
    with pytest.raises(CallerError, match="no route is called nowhere"):
        models.put_model(admin, ADMIN, "large", ModelWanted(provider="acme", routes=["nowhere"], version=0))


async def test_an_absent_change_cannot_be_removed(client: httpx.AsyncClient, admin: AdminServices) -> None:
    """These are an unknown name, an entry of the file that was never changed, and a change already removed."""
    tenants.put_tenant(admin, ADMIN, "once", TenantWanted(budget_usd=1, version=0))
    assert (await client.delete("/admin/tenants/once?version=1")).status_code == 200
    for path in ("providers/nobody", "providers/acme", "models/nobody", "models/small", "tenants/nobody"):
        answer = await client.delete(f"/admin/{path}?version=0")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert (await client.delete("/admin/tenants/once?version=2")).status_code == 404
    assert len(audit.audit_log(admin)) == 2


async def test_only_admins_change_what_costs_money(client: httpx.AsyncClient, admin: AdminServices) -> None:
    """Unknown fields and invalid names are refused."""
    for path, body in (
        ("/admin/providers/new", {"kind": "openai", "version": 0, "apikey": "x"}),
        ("/admin/providers/%20", {"kind": "openai", "base_url": "http://x/v1", "version": 0}),
        ("/admin/models/x", {"provider": "acme", "input_usd_per_mtok": -1, "version": 0}),
        ("/admin/models/x", {"provider": "acme", "input_usd_per_mtok": "NaN", "version": 0}),
    ):
        answer = await client.put(path, json=body)
        assert answer.status_code == 422, answer.text
        assert answer.json()["error"]["message"]


def test_a_provider_is_tested_without_spending(admin: AdminServices) -> None:
    """The connection test of an address without a server reports that nothing answers."""
    told = models.check_provider(admin, ADMIN, "acme")
    assert not told.ok and "no answer" in told.detail


def test_tenants_have_budgets_and_their_spending(admin: AdminServices) -> None:
    """A tenant is listed from its traffic, and workers enforce the budget that it is given."""
    now_s = time.time()  # a few seconds ago might be another day or month
    write(admin, recent(1, time_s=now_s), recent(2, time_s=now_s, cost_nanousd=500_000_000))
    (seen,) = tenants.tenants(admin)
    assert (seen.name, seen.source, seen.month_requests) == ("acme", "seen", 2)
    tenants.put_tenant(admin, ADMIN, "acme", TenantWanted(budget_usd=1.0, budget_period="day", version=0))
    (told,) = tenants.tenants(admin)
    assert told.source == "here" and told.spent.used_share == pytest.approx(0.5, abs=1e-4)
    assert admin.current.auth.tenants[0].budget_usd == 1.0
    tenants.remove_tenant(admin, ADMIN, "acme", 1)
    assert tenants.tenants(admin)[0].source == "seen" and admin.current.auth.tenants == []


def test_a_change_of_prices_is_undone_from_the_audit_log_by_an_admin_only(admin: AdminServices) -> None:
    """An operator can't undo an admin's change."""
    models.put_model(admin, ADMIN, "small", ModelWanted(provider="acme", input_usd_per_mtok=9, version=0))
    (line,) = audit.audit_log(admin)
    assert line.undo is not None
    with pytest.raises(Exception, match="needs the role admin"):
        audit.undo_setting(admin, Actor("opa", "operator"), line.undo["name"], line.undo["version"])
    audit.undo_setting(admin, ADMIN, line.undo["name"], line.undo["version"])
    assert admin.current.models == admin.config.models
    assert knobs.route_cards(admin)[0].models == ["small", "large"]


@pytest.mark.parametrize(
    ("wanted", "section", "own"),
    [(ModelWanted, ModelConfig, {"version", "routes"}), (ProviderWanted, ProviderConfig, {"version"})],
)
def test_the_api_has_the_fields_of_the_configuration(
    wanted: type[BaseModel], section: type[msgspec.Struct], own: set[str]
) -> None:
    """Every field is a key of the configuration file, and an omitted field means the same in both."""
    known = {one.encode_name: one.default for one in msgspec.structs.fields(section)}
    for name, field in wanted.model_fields.items():
        if name in own:
            continue
        key = "json" if name == "json_schema" else name
        assert key in known, f"{name} is no key of {section.__name__}"
        if not field.is_required() and name not in ("api_key", "headers"):  # of a secret None keeps the stored one
            assert field.default == known[key], name


async def test_pages_name_the_days_and_months_of_budgets(client: httpx.AsyncClient) -> None:
    """They are in UTC, wherever the reader is; a total budget has no period."""
    for tenant, period in (("acme", "total"), ("shop", "day")):
        wanted = {"budget_usd": 5.0, "budget_period": period, "version": 0}
        assert (await client.put(f"/admin/tenants/{tenant}", json=wanted)).status_code == 200
    page = (await client.get("/tenants")).text
    assert "in its lifetime" in page and "today, UTC" in page and "this total" not in page


async def test_a_fresh_gateway_says_what_to_do_next(admin: AdminServices, client: httpx.AsyncClient) -> None:
    """A database that is being opened isn't reported as away. The first user is told that everybody has to sign in from
    then on. A viewer isn't referred to forms that only others have.
    """
    admin.opened = False
    assert "is being opened" in (await client.get("/")).text
    admin.opened = True
    assert "Anybody on this machine has access" in (await client.get("/users")).text
    bare = msgspec.structs.replace(admin.config, routes=[], providers=[], models=[])
    admin.config, admin._current = bare, None
    assert "Ask for one below" not in (await client.get("/certificates")).text
    assert "There is no provider yet" in (await client.get("/models/edit")).text
    made = {"name": "boss", "role": "admin", "password": "a long enough password"}
    assert "From now on everybody must sign in" in (await client.post("/users/new", data=made)).text
