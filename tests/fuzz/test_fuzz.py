"""A few thousand cases of what `python -m tests.fuzz` runs by the hundred thousand: bad input is never our fault."""

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
def test_codecs_answer_or_say_whose_fault_it_is(codec: str) -> None:
    """A thousand bad inputs of each kind raise nothing but errors with a defined answer."""
    assert [number for number in range(1000) if not is_defined(codec, number)] == []


def test_bad_bodies_are_never_our_fault(here: Ports) -> None:
    """Spoilt requests on every surface are answered by 2xx or 4xx."""
    tally = Tally()
    bad_bodies(here, 600, tally)
    assert tally.cases == 600 and not tally.faults, tally.faults[:5]
    assert tally.statuses[400] > 100 and tally.statuses[200] > 50


def test_bad_http_is_never_our_fault(here: Ports) -> None:
    """Heads gone wrong are answered by 4xx or closed, and the next request is served."""
    tally = Tally()
    bad_wire(here, 300, tally)
    assert not tally.faults, tally.faults[:5]
    assert here.ask(here.data, "GET", "/healthz", [], b"").status == 200


def test_the_data_port_keeps_to_its_document(here: Ports) -> None:
    """What schemathesis makes of /openapi.json is never answered by 5xx."""
    tally = Tally()
    by_document(here, here.data, here.data_document(), 150, tally)
    assert tally.cases > 20 and not tally.faults, tally.faults[:5]


def test_the_admin_port_keeps_to_its_document(here: Ports) -> None:
    """What schemathesis makes of the admin API's document is never answered by 5xx."""
    tally = Tally()
    by_document(here, here.admin, here.admin_document(), 200, tally)
    assert tally.cases > 20 and not tally.faults, tally.faults[:5]


def test_a_number_no_database_holds_is_the_callers_fault(here: Ports) -> None:
    """Found by the document's cases: answered 422, with the error's own shape."""
    said = here.ask(here.admin, "GET", "/admin/spend?since_s=2e221", [(b"authorization", b"Bearer hg-master")], b"")
    assert said.status == 422 and json.loads(said.body)["error"]["code"] == "unsound"


def test_every_path_of_the_data_port_is_in_its_document(here: Ports) -> None:
    """No handler and no surface is left out, and every operation has a summary and an id of its own."""
    paths = here.data_document()["paths"]
    for method, pattern, _ in HANDLERS:
        for path in paths_of(pattern.pattern):
            assert method.lower() in paths[path], path
            assert pattern.fullmatch(path.replace("{id}", "an-id")), path
    assert set(SURFACES) <= set(paths)
    operations = [operation for ways in paths.values() for operation in ways.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids)) and all(operation["summary"] for operation in operations)
