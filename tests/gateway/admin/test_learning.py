from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from gateway.admin import certificates, labels, learning, overview, upkeep
from gateway.admin.actor import Actor
from gateway.admin.changes import Conflict, DatabaseAway
from gateway.admin.services import AdminServices
from gateway.admin.shapes.certificates import CertificateWanted
from gateway.admin.shapes.labels import LabelWanted
from gateway.admin.shapes.learning import CanaryWanted
from gateway.admin.upkeep import Seen
from gateway.config.settings import read_settings
from gateway.errors import CallerError, NotFound
from gateway.journal.record import DecisionRecord, Record
from gateway.journal.rollup_tables import certificates as certificate_table
from gateway.journal.store import RouterVersion
from gateway.promote import Versions
from routers.artifact import Card
from routers.plugin import PluginRouter
from routers.registry import open_router, save_router
from tests.gateway.admin.traffic import explored, recent, write
from tests.gateway.journal.records import feedback
from tests.until import until

ANN, VIC = Actor("ann", "operator"), Actor("vic", "viewer")


def artefact(folder: Path, number: int) -> Path:
    """The shipped router under another version."""
    router = open_router("default")
    assert isinstance(router, PluginRouter)
    path = folder / f"{number}.safetensors"
    save_router(path, router, Card(router.name, router.version, router.features_version, (), data_checksum=str(number)))
    return path


@pytest.fixture
def two(admin: AdminServices, tmp_path: Path) -> tuple[str, str]:
    """Two versions of the route's router, neither of which is live."""
    known = Versions(admin.store, admin.run_dir)
    made = [
        known.add("auto", artefact(tmp_path, number), actor="learn",
                  metrics={"parent": "p", "label": f"linear@{number}", "gate": {"passed": True, "reason": "better"}})
        for number in (1, 2)
    ]  # fmt: skip
    return made[0].version, made[1].version


def states(admin: AdminServices) -> dict[str, str]:
    return {one.version: one.state for one in learning.learning(admin, "auto")[0].versions}


def test_a_version_becomes_a_canary_then_live_then_is_rolled_back(
    admin: AdminServices, two: tuple[str, str]
) -> None:
    """Every step shows which actions are possible, and the workers' settings follow."""
    first, second = two
    learning.promote(admin, ANN, "auto", first)
    learning.begin_canary(admin, ANN, "auto", second, CanaryWanted(share=0.25))
    assert states(admin) == {first: "live", second: "canary"}
    assert read_settings(admin.run_dir).canaries["auto"].share == 0.25
    told = {one.version: one for one in learning.learning(admin, "auto")[0].versions}
    assert told[second].may == ["promote", "end_canary"] and told[first].may == ["roll_back"]
    gate = told[second].gate
    assert gate is not None and gate.passed and told[second].parent == "p"
    learning.end_canary(admin, ANN, "auto")
    assert "auto" not in read_settings(admin.run_dir).canaries and states(admin)[second] == "candidate"
    learning.promote(admin, ANN, "auto", second)
    assert read_settings(admin.run_dir).routers["auto"].endswith(f"{second}.safetensors")
    assert learning.roll_back(admin, ANN, "auto").version == first
    assert states(admin) == {first: "live", second: "rolled_back"}
    actions = [row["action"] for row in admin.store.audit_log()]
    assert "router.canary" in actions and "router.rolled_back" in actions


def test_only_the_version_shown_is_replaced(admin: AdminServices, two: tuple[str, str]) -> None:
    """Of two pages that show the same live version, the second one's promotion or roll-back is refused."""
    first, second = two
    learning.promote(admin, ANN, "auto", first, live="")
    learning.promote(admin, ANN, "auto", second, live=first)
    with pytest.raises(Conflict, match=f"auto is now served by {second}"):
        learning.promote(admin, ANN, "auto", first, live="")

    def turn(_: int) -> str:
        try:
            return learning.roll_back(admin, ANN, "auto", live=second).version
        except Conflict as told:
            return told.message

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(turn, range(2)), key=len)
    assert said[0] == first and "is now served by" in said[1]
    assert states(admin) == {first: "live", second: "rolled_back"}


def test_a_version_that_cannot_serve_is_refused(admin: AdminServices, two: tuple[str, str]) -> None:
    """These are an unknown version or route, a missing file, and a canary with a share of 1."""
    with pytest.raises(CallerError, match="no single version"):
        learning.promote(admin, ANN, "auto", "zzz")
    with pytest.raises(NotFound):
        learning.promote(admin, ANN, "nowhere", two[0])
    with pytest.raises(CallerError, match="share"):
        learning.begin_canary(admin, ANN, "auto", two[0], CanaryWanted(share=1.0))
    with pytest.raises(CallerError, match="no promoted version"):
        learning.roll_back(admin, ANN, "auto")


def test_a_route_is_examined_when_it_has_new_decisions(admin: AdminServices) -> None:
    """Alarms, calibration and drift are computed then, and not again without new decisions."""
    seen: dict[str, Seen] = {}
    assert upkeep.step(admin, seen, 0.0) is False  # an empty journal has no new decisions
    write(admin, *explored(300))
    assert upkeep.step(admin, seen, 100.0)
    told = learning.learning(admin)[0]
    assert told.rounds == 300 and told.labelled == 300 and told.time_s is not None
    assert {one.model for one in told.calibration} == {"small", "large"}
    for one in told.calibration:
        assert sum(part.n for part in one.bins) == one.n
        assert all(0.0 <= part.scored.low <= part.scored.value <= part.scored.high <= 1.0 for part in one.bins)
    assert sum(point.rounds for point in told.drift) == 300
    assert upkeep.step(admin, seen, 200.0)  # the frontier, which is computed more rarely
    assert upkeep.step(admin, seen, 300.0) is False


def test_alarms_are_counted_and_listed(admin: AdminServices) -> None:
    """A route without scores raises an alarm."""
    records = explored(300)
    write(admin, *[one for one in records if one.id.startswith("dec_")], records[1])
    upkeep.step(admin, {}, 100.0)
    kinds = [one.kind for one in learning.alarms(admin)]
    assert "unlabelled" in kinds and admin.alarms == len(kinds)


async def test_figures_survive_a_database_outage(admin: AdminServices, monkeypatch: pytest.MonkeyPatch) -> None:
    """That holds, too, if the outage begins while a route is examined."""
    failures = [DatabaseAway()]

    def raised(admin: AdminServices) -> list[dict[str, Any]]:
        if failures:
            raise failures.pop()
        return overview.raised(admin)

    monkeypatch.setattr(upkeep, "raised", raised)
    monkeypatch.setattr(upkeep, "EVERY_S", 0.01)
    monkeypatch.setattr(upkeep, "CHECKED_EVERY_S", 0.0)
    records = [one for one in explored(300) if isinstance(one, DecisionRecord)]
    write(admin, *records[:200])
    ended = threading.Event()
    thread = threading.Thread(target=upkeep.keep_up, args=(admin, ended))
    thread.start()
    try:
        await until(lambda: not failures)
        write(admin, *records[200:])
        await until(lambda: bool(admin.alarms) or not thread.is_alive())
        assert thread.is_alive() and admin.alarms
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("solved", ["cases.jsonl", ""])
def test_harmful_solved_cases_raise_an_alarm(admin: AdminServices, solved: str) -> None:
    """All answers with solved cases were wrong, and all others right."""
    said, records = list[Record](), [one for one in explored(400) if isinstance(one, DecisionRecord)]
    for number, one in enumerate(records):
        withheld = number % 4 == 0
        said.append(replace(one, cases_shown=0 if withheld else 2, cases_withheld=0.25))
        said.append(feedback(number, float(withheld), time_s=one.time_s))
    write(admin, *said)
    admin.config = replace(admin.config, routes=[replace(admin.config.routes[0], solved=solved)])
    upkeep.step(admin, {}, 100.0)
    assert ("harmful cases" in {one.kind for one in learning.alarms(admin)}) == bool(solved)


def test_answers_without_stored_text_are_reported(admin: AdminServices) -> None:
    """The route stores texts now, but the waiting answers are from before."""
    write(admin, *(recent(n, id=f"dec_blind{n}") for n in range(30)))
    upkeep.check_up(admin, "auto", Seen())
    queue = labels.queue(admin, ANN)
    assert queue.data and "the text of these answers is not stored" in queue.note


def test_the_most_informative_answers_are_labelled_first(admin: AdminServices) -> None:
    """Answers with text come first; a labelled decision leaves the queue, and a second label replaces the first."""
    records = explored(120)
    write(admin, *[one for one in records if one.id.startswith("dec_")], recent(5000, id="dec_blind"))
    upkeep.check_up(admin, "auto", Seen())
    queue = labels.queue(admin, ANN, limit=5)
    assert len(queue.data) == 5 and all(one.prompt_text for one in queue.data)
    gains = [one.gain for one in queue.data]
    assert gains == sorted(gains, reverse=True) and queue.waiting >= 120
    assert all(not one.prompt_text for one in labels.queue(admin, VIC).data)
    first = queue.data[0].id
    assert labels.label(admin, ANN, first, LabelWanted(score=0.0)).source == "label"
    labels.label(admin, ANN, first, LabelWanted(score=1.0, label="right"))
    assert first not in [one.id for one in labels.queue(admin, ANN, limit=60).data]
    (said,) = [one for one in labels.feedback(admin).data if one.decision_id == first]
    assert (said.score, said.label) == (1.0, "right")
    assert labels.feedback_summary(admin).by_source["label"] == 1
    with pytest.raises(NotFound):
        labels.label(admin, ANN, "dec_nowhere", LabelWanted(score=1.0))


def test_a_floor_is_certified_if_the_data_supports_it(admin: AdminServices) -> None:
    """With too little data the error says how much more is needed; with enough the certificate has its data,
    assumption, bound and date, and is stored.
    """
    write(admin, *explored(60))
    few = certificates.issue(admin, ANN, "auto", CertificateWanted(floor=0.9))
    assert few.certificate is None and few.refusal is not None and (few.refusal.calls or 0) > 0
    write(admin, *explored(1000, seed=2))
    admin.results.clear()
    wanted = CertificateWanted(floor=0.7, apply=True, version=0)
    told = certificates.issue(admin, ANN, "auto", wanted).certificate
    assert told is not None and told.standing == "valid" and told.reference == "large"
    assert told.rows >= 1000 and told.p_value <= 0.05 and told.assumption and told.bound and told.data_checksum
    assert admin.current.routes[0].cost_weight == told.cost_weight
    assert certificates.certificates(admin)[0].id == told.id
    with pytest.raises(Conflict):
        certificates.issue(admin, ANN, "auto", wanted)
    assert certificates.revoke(admin, ANN, told.id).standing == "revoked"


def test_drift_withdraws_a_certificate_and_resets_the_knob(admin: AdminServices) -> None:
    """If quality falls far below the floor, the certificate is withdrawn and the cost weight set to 0."""
    write(admin, *explored(1000, seed=2))
    wanted = CertificateWanted(floor=0.7, apply=True, version=0)
    told = certificates.issue(admin, ANN, "auto", wanted).certificate
    assert told is not None
    with admin.store.engine.begin() as connection:  # issued before the traffic
        text = told.model_copy(update={"issued_s": 1.0, "floor": 1.0}).model_dump_json()
        connection.execute(sa.update(certificate_table).values(payload=text, issued_s=1.0))
    begun_s = time.time()
    upkeep.check_up(admin, "auto", Seen())
    (after,) = certificates.certificates(admin)
    assert after.standing == "withdrawn" and after.coverage is not None and after.held is False
    assert after.coverage.high < 1.0 and "cost weight to 0" in after.note
    assert admin.current.routes[0].cost_weight == 0.0
    assert begun_s <= after.standing_since_s <= time.time()


def test_versions_of_unknown_routes_are_not_listed(admin: AdminServices) -> None:
    admin.store.save_router_version(RouterVersion("gone", "1", 1.0, "live"), "admin")
    assert learning.learning(admin)[0].versions == []
