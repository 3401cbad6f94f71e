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
from gateway.config import ModelConfig, ProviderConfig
from gateway.errors import CallerError
from gateway.overlay import FILE, read_secrets
from tests.gateway.admin.traffic import recent, write

ADMIN = Actor("ann", "admin")
SECRET = "sk-very-secret-indeed"


def provider(**stated: Any) -> ProviderWanted:
    return ProviderWanted(**{"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "version": 0, **stated})


def card(admin: AdminServices, name: str) -> Any:
    return next(one for one in models.fleet(admin).providers if one.name == name)


def test_a_secret_goes_in_once_and_never_comes_out(admin: AdminServices) -> None:
    """A secret is in no page, audit row, database or workers' file; only in a file of mode 0600."""
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


def test_a_secret_that_is_not_said_again_stays_and_an_empty_one_goes(admin: AdminServices) -> None:
    """A secret left out is kept; an empty one is removed; of an environment variable only the name is stored."""
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


def test_a_provider_of_the_file_keeps_its_secret_when_something_else_changes(admin: AdminServices) -> None:
    """A change keeps the file's secret; once it is removed, the configuration file's entry is in force again."""
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
def test_a_provider_that_could_not_work_is_refused_whole(
    admin: AdminServices, wanted: ProviderWanted, field: str
) -> None:
    """The error names the field, and nothing of the change is stored."""
    with pytest.raises(CallerError) as refused:
        models.put_provider(admin, ADMIN, "new", wanted)
    assert field in str(refused.value.param)
    assert admin.current == admin.config and audit.audit_log(admin) == []


def test_a_model_joins_its_routes_in_one_step_and_leaves_them_as_one(admin: AdminServices) -> None:
    """In the configuration, on the pages; a provider in use can't go."""
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


def test_a_route_is_never_left_without_a_model(admin: AdminServices) -> None:
    """The last one can't be taken out of it; nor can a route be joined that isn't there."""
    models.put_model(admin, ADMIN, "small", ModelWanted(provider="acme", routes=[], version=0))
    with pytest.raises(CallerError, match="names no model"):
        models.put_model(admin, ADMIN, "large", ModelWanted(provider="acme", routes=[], version=0))
    with pytest.raises(CallerError, match="no route is called nowhere"):
        models.put_model(admin, ADMIN, "large", ModelWanted(provider="acme", routes=["nowhere"], version=0))


async def test_what_is_not_there_can_not_be_taken_back(client: httpx.AsyncClient, admin: AdminServices) -> None:
    """An unknown name, one of the file that was never changed here, one taken back already: nothing is kept."""
    tenants.put_tenant(admin, ADMIN, "once", TenantWanted(budget_usd=1, version=0))
    assert (await client.delete("/admin/tenants/once?version=1")).status_code == 200
    for path in ("providers/nobody", "providers/acme", "models/nobody", "models/small", "tenants/nobody"):
        answer = await client.delete(f"/admin/{path}?version=0")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert (await client.delete("/admin/tenants/once?version=2")).status_code == 404
    assert len(audit.audit_log(admin)) == 2


async def test_only_admins_change_what_costs_money(client: httpx.AsyncClient, admin: AdminServices) -> None:
    """An unknown field is refused, and so is a name that no file could hold."""
    for path, body in (
        ("/admin/providers/new", {"kind": "openai", "version": 0, "apikey": "x"}),
        ("/admin/providers/%20", {"kind": "openai", "base_url": "http://x/v1", "version": 0}),
        ("/admin/models/x", {"provider": "acme", "input_usd_per_mtok": -1, "version": 0}),
        ("/admin/models/x", {"provider": "acme", "input_usd_per_mtok": "NaN", "version": 0}),
    ):
        answer = await client.put(path, json=body)
        assert answer.status_code == 422, answer.text
        assert answer.json()["error"]["message"]


def test_a_provider_is_tried_without_spending(admin: AdminServices) -> None:
    """The connection test of an address without a server says that there is no answer."""
    told = models.check_provider(admin, ADMIN, "acme")
    assert not told.ok and "no answer" in told.detail


def test_tenants_get_budgets_and_show_what_they_spent(admin: AdminServices) -> None:
    """Seen in traffic first; then with a budget of its own, which workers go by."""
    now_s = time.time()  # not seconds ago: that may have been another day's, or another month's
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
def test_what_can_be_changed_here_is_what_the_configuration_has(
    wanted: type[BaseModel], section: type[msgspec.Struct], own: set[str]
) -> None:
    """Every field is a key of the file's, and one that is left out means the same in both places."""
    known = {one.encode_name: one.default for one in msgspec.structs.fields(section)}
    for name, field in wanted.model_fields.items():
        if name in own:
            continue
        key = "json" if name == "json_schema" else name
        assert key in known, f"{name} is no key of {section.__name__}"
        if not field.is_required() and name not in ("api_key", "headers"):  # of secrets: None keeps what is there
            assert field.default == known[key], name


async def test_pages_say_which_days_and_months_budgets_are_of(client: httpx.AsyncClient) -> None:
    """UTC's, wherever the reader is; and a budget for good is no "this total"."""
    for tenant, period in (("acme", "total"), ("shop", "day")):
        wanted = {"budget_usd": 5.0, "budget_period": period, "version": 0}
        assert (await client.put(f"/admin/tenants/{tenant}", json=wanted)).status_code == 200
    page = (await client.get("/tenants")).text
    assert "in its lifetime" in page and "today, UTC" in page and "this total" not in page


async def test_a_fresh_gateway_says_what_is_so_and_what_to_do(admin: AdminServices, client: httpx.AsyncClient) -> None:
    """A database that is being opened is not away; the first user ends the time when nobody had to sign in, and is told
    so; a viewer is pointed to no form that he hasn't got.
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
