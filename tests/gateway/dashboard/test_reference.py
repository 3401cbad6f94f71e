"""The admin API's reference page, and the summaries of the data plane's OpenAPI document."""

from __future__ import annotations

import json
from pathlib import Path

from gateway.admin.app import make_admin
from gateway.admin.services import AdminServices
from gateway.api.openapi import document
from gateway.config.types import Config
from gateway.dashboard.pages.reference import operations_of
from gateway.journal.schema import open_engine
from gateway.journal.ship import ShipState
from gateway.journal.store import Store


def sentence(text: str) -> bool:
    """Whether the text is a whole sentence on one line, and no function's name with blanks for underscores."""
    return text[:1].isupper() and text.endswith(".") and "\n" not in text


def test_every_path_of_the_data_plane_has_a_sentence() -> None:
    """People read /openapi.json, too, so different operations have different sentences."""
    told: dict[str, set[str]] = {}
    for path, methods in json.loads(document())["paths"].items():
        for method, operation in methods.items():
            assert sentence(operation["summary"]) and sentence(operation.get("description", "None.")), (method, path)
            told.setdefault(operation["summary"], set()).add(path)
    same = {"/healthz", "/health", "/health/liveliness", "/health/liveness"}, {"/readyz", "/health/readiness"}
    assert [paths for paths in told.values() if len(paths) > 1] == [{"/v1/rerank", "/v2/rerank"}, *same]


def test_every_operation_is_documented_with_its_fields(tmp_path: Path) -> None:
    """None is left out; each field has a type, a place, whether it is required, and a description."""
    config = Config(providers=[], models=[], routes=[])
    app = make_admin(AdminServices(config, Store(open_engine(f"sqlite:///{tmp_path}/none.db")), ShipState()))
    told = operations_of(app.openapi())
    operations = {(one.method, one.path): one for room in told.values() for one in room}
    count = sum(len(methods) for path, methods in app.openapi()["paths"].items() if path.startswith("/admin"))
    assert len(operations) == count > 60
    assert all(sentence(one.text) for one in operations.values())
    knobs = {one.name: one for one in operations["PUT", "/admin/routes/{route}/knobs"].fields}
    assert (knobs["route"].place, knobs["route"].required) == ("path", True)
    assert (knobs["version"].place, knobs["version"].kind, knobs["version"].required) == ("body", "integer", True)
    assert "list of string or null" in {one.kind for one in operations["PUT", "/admin/models/{name}"].fields}
