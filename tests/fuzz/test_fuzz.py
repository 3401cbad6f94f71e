"""A few thousand of the cases that `python -m tests.fuzz` runs by the hundred thousand: bad input never causes a fault
of the gateway.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from gateway.api import HANDLERS
from gateway.api.openapi import paths_of
from gateway.call import SURFACES
from tests.fuzz.codecs import CODECS
from tests.fuzz.ports import Ports, Tally, bad_bodies, bad_wire, by_document, ports


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    with ports(tmp_path_factory.mktemp("fuzz")) as found:
        yield found


def is_defined(codec: str, seed: int) -> bool:
    try:
        CODECS[codec](random.Random(seed))
    except Exception as fault:
        print(f"{codec} {seed}: {fault!r}")
        return False
    return True


@pytest.mark.parametrize("codec", CODECS)
def test_codecs_return_or_raise_a_defined_error(codec: str) -> None:
    """A thousand bad inputs of each kind raise nothing but errors with a defined answer."""
    assert [number for number in range(1000) if not is_defined(codec, number)] == []


def test_damaged_bodies_are_never_a_server_error(here: Ports) -> None:
    """Damaged requests on every surface are answered with 2xx or 4xx."""
    tally = Tally()
    bad_bodies(here, 600, tally)
    assert tally.cases == 600 and not tally.faults, tally.faults[:5]
    assert tally.statuses[400] > 100 and tally.statuses[200] > 50


def test_invalid_http_is_never_a_server_error(here: Ports) -> None:
    """Invalid heads are answered with 4xx or the connection is closed, and the next request is served."""
    tally = Tally()
    bad_wire(here, 300, tally)
    assert not tally.faults, tally.faults[:5]
    assert here.ask(here.data, "GET", "/healthz", [], b"").status == 200


def test_the_data_port_conforms_to_its_document(here: Ports) -> None:
    """No case that schemathesis generates from /openapi.json is answered with 5xx."""
    tally = Tally()
    by_document(here, here.data, here.data_document(), 150, tally)
    assert tally.cases > 20 and not tally.faults, tally.faults[:5]


def test_the_admin_port_conforms_to_its_document(here: Ports) -> None:
    """No case that schemathesis generates from the admin API's document is answered with 5xx."""
    tally = Tally()
    by_document(here, here.admin, here.admin_document(), 200, tally)
    assert tally.cases > 20 and not tally.faults, tally.faults[:5]


def test_a_number_that_no_database_can_hold_is_refused(here: Ports) -> None:
    """The document's cases found it: it is answered with 422 in the API's own error form."""
    said = here.ask(here.admin, "GET", "/admin/spend?since_s=2e221", [(b"authorization", b"Bearer hg-master")], b"")
    assert said.status == 422 and json.loads(said.body)["error"]["code"] == "unsound"


def test_every_path_of_the_data_port_is_in_its_document(here: Ports) -> None:
    """Every handler and surface is included, and every operation has a summary and a unique id."""
    paths = here.data_document()["paths"]
    for method, pattern, _ in HANDLERS:
        for path in paths_of(pattern.pattern):
            assert method.lower() in paths[path], path
            assert pattern.fullmatch(path.replace("{id}", "an-id")), path
    assert set(SURFACES) <= set(paths)
    operations = [operation for ways in paths.values() for operation in ways.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids)) and all(operation["summary"] for operation in operations)
