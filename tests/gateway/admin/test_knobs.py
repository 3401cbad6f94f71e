from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from gateway.admin import audit, changes, knobs
from gateway.admin.actor import Actor
from gateway.admin.changes import Conflict
from gateway.admin.services import AdminServices
from gateway.admin.shapes.knobs import Kept, KnobChange, Knobs, TrialWanted
from gateway.config.settings import read_settings
from gateway.errors import CallerError, HeadgateError, NotFound
from gateway.journal.record import DecisionRecord, FeedbackRecord
from gateway.journal.store import Store
from tests.gateway.admin.traffic import explored, write

ANN, BOB = Actor("ann", "operator"), Actor("bob", "operator")


def turn(admin: AdminServices, who: Actor, version: int, **stated: Any) -> Any:
    return knobs.apply(admin, who, "auto", KnobChange(knobs=Knobs(**stated), version=version, why="to see"))


def test_a_knob_is_in_force_and_on_record(admin: AdminServices) -> None:
    """The workers' file, the route, its history and the audit log agree; knobs that were not given stay."""
    done = turn(admin, ANN, 0, cost_weight=0.9)
    assert (done.setting.version, done.setting.actor) == (1, "ann")
    assert read_settings(admin.run_dir).overlay.routes == {"auto": {"cost_weight": 0.9}}
    page = knobs.route_detail(admin, "auto")
    assert (page.knobs.cost_weight, page.knobs.explore, page.configured.cost_weight) == (0.9, 0.2, 0.5)
    assert [one.version for one in page.history] == [1]
    (line,) = audit.audit_log(admin, action="setting.save")
    assert (line.actor, line.target, line.detail["why"]) == ("ann", "route:auto", "to see")
    assert line.undo == {"name": "route:auto", "version": 1}


async def test_a_route_whose_requests_left_no_vectors_has_its_page(
    admin: AdminServices, client: httpx.AsyncClient
) -> None:
    """The page says that nothing can be predicted, and why; it was one error instead of the page."""
    write(admin, *explored(40, text=False))
    assert "neither vectors" in knobs.preview(admin, "auto", Knobs(cost_weight=0.9)).message
    page = await client.get("/routes/auto")
    assert page.status_code == 200 and "neither vectors" in page.text


def test_a_changed_knob_is_compared_with_its_prediction(admin: AdminServices) -> None:
    """First there is too little traffic; then it is as predicted, or it isn't. A trial and its end don't affect the
    comparison, and after an undo there is none.
    """
    write(admin, *explored(400))
    turn(admin, ANN, 0, cost_weight=1.0)
    foretold = knobs.preview(admin, "auto", Knobs(cost_weight=1.0)).shares_then["small"]

    def kept(chance: float, first: int) -> Kept:
        came = explored(200, seed=first, chance=chance)
        at_s = time.time()
        write(admin, *(replace(one, id=f"{one.id}_{first}", time_s=at_s) for one in came if one.id.startswith("dec_")))
        admin.results.clear()
        told = knobs.route_detail(admin, "auto").kept
        assert told is not None and told.cost_usd is not None
        return told

    early = knobs.route_detail(admin, "auto").kept
    assert early is not None and early.quality is not None and early.cost_usd is not None
    assert (early.rounds, early.quality.held, early.cost_usd.held) == (0, None, None)
    told = kept(foretold, 1)
    assert told.rounds == 200 and told.cost_usd is not None and told.cost_usd.held is True
    assert told.quality is not None and told.quality.held is None  # without scores
    wanted = TrialWanted(kind="shadow", knobs=Knobs(cost_weight=0.2), version=1)
    knobs.end_trial(admin, ANN, "auto", knobs.start_trial(admin, ANN, "auto", wanted).setting.version)
    otherwise = kept(1 - foretold, 2)
    assert otherwise.rounds == 400 and otherwise.cost_usd is not None and otherwise.cost_usd.held is False
    assert "foretold" not in str(audit.audit_log(admin))
    turn(admin, ANN, 3, cost_weight=0.5)
    knobs.undo(admin, ANN, "auto", 4)
    assert knobs.route_detail(admin, "auto").kept is not None  # with the same knobs, because they are in force again
    turn(admin, ANN, 5, budget_usd_per_day=9.0)
    assert knobs.route_detail(admin, "auto").kept is None


def test_of_two_operators_the_second_learns_who_was_first(admin: AdminServices) -> None:
    """Nothing of the second change is in force, and its error has the value in force."""
    turn(admin, ANN, 0, cost_weight=0.9)
    with pytest.raises(Conflict, match="ann changed route:auto") as conflict:
        turn(admin, BOB, 0, cost_weight=0.1)
    assert conflict.value.current is not None and conflict.value.current.value == {"cost_weight": 0.9, "trial": None}
    assert knobs.route_detail(admin, "auto").knobs.cost_weight == 0.9


def test_of_many_at_the_same_moment_one_gets_through(admin: AdminServices) -> None:
    """Of concurrent changes one makes a version and an audit row; the others get a conflict."""
    told: list[str] = []

    def one(number: int) -> None:
        try:
            turn(admin, Actor(f"operator {number}", "operator"), 0, cost_weight=number / 10)
            told.append("done")
        except Conflict:
            told.append("conflict")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["conflict"] * 4 + ["done"]
    assert len(changes.history(admin, "route:auto")) == 1


@pytest.mark.parametrize(
    ("stated", "field"),
    [({"max_latency_s": 0.0}, "max_latency_s"), ({"min_quality": 0.0}, "min_quality")],
)
def test_what_no_file_could_hold_is_refused_with_its_place(
    admin: AdminServices, stated: dict[str, float], field: str
) -> None:
    """A refused change leaves no version, no audit row and no file."""
    change = KnobChange.model_construct(knobs=Knobs.model_construct({*stated}, **stated), version=0, why="")
    with pytest.raises(CallerError) as refused:
        knobs.apply(admin, ANN, "auto", change)
    assert refused.value.status == 422 and field in str(refused.value.param)
    assert changes.setting(admin, "route:auto").version == 0
    assert audit.audit_log(admin) == []
    assert not read_settings(admin.run_dir).overlay.routes


def test_a_change_is_undone_step_by_step(admin: AdminServices) -> None:
    """Undo makes a new version, and needs the version in force."""
    turn(admin, ANN, 0, cost_weight=0.9)
    turn(admin, ANN, 1, cost_weight=0.1)
    with pytest.raises(Conflict):
        knobs.undo(admin, BOB, "auto", 1)
    knobs.undo(admin, BOB, "auto", 2)
    assert knobs.route_detail(admin, "auto").knobs.cost_weight == 0.9
    audit.undo_setting(admin, BOB, "route:auto", 3)
    assert knobs.route_detail(admin, "auto").knobs.cost_weight == 0.1
    with pytest.raises(CallerError, match="never changed"):
        changes.undo(admin, BOB, "route:other", 0)


def test_a_value_set_to_nothing_is_no_value(admin: AdminServices) -> None:
    """None unsets the file's value of a knob; leaving the knob out restores it."""
    turn(admin, ANN, 0, cost_weight=None, min_quality=0.8)
    assert knobs.route_detail(admin, "auto").knobs.cost_weight is None
    turn(admin, ANN, 1)
    page = knobs.route_detail(admin, "auto")
    assert (page.knobs.cost_weight, page.knobs.min_quality) == (0.5, None)


def test_a_database_that_goes_away_in_the_middle_leaves_nothing_half_done(
    admin: AdminServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the version can't be stored, the answer is 503, and workers keep their settings."""
    before = read_settings(admin.run_dir)

    def away(*_: object, **__: object) -> int:
        raise sa.exc.OperationalError("insert", {}, OSError("gone"))

    monkeypatch.setattr(Store, "save_setting", away)
    with pytest.raises(HeadgateError) as fault:
        turn(admin, ANN, 0, cost_weight=0.9)
    assert fault.value.status == 503
    assert read_settings(admin.run_dir) == before


def test_a_preview_has_figures_or_what_they_would_take(admin: AdminServices) -> None:
    """Without a log, or with too few decisions, it is refused with the number of calls needed; with enough it has
    figures and intervals.
    """
    empty = knobs.preview(admin, "auto", Knobs(cost_weight=1.0))
    assert empty.rounds == 0 and empty.cost_usd.difference.refusal is not None
    write(admin, *explored(30))
    admin.results.clear()
    few = knobs.preview(admin, "auto", Knobs(cost_weight=1.0))
    assert few.quality.difference.refusal is not None
    assert (few.quality.difference.refusal.explored_calls or 0) > 0 and "more explored calls" in few.message
    assert few.quality.difference.refusal.exploration == 0.1
    write(admin, *explored(500, seed=1))
    admin.results.clear()
    told = knobs.preview(admin, "auto", Knobs(cost_weight=1.0))
    cost, quality = told.cost_usd.difference.interval, told.quality.difference.interval
    assert cost is not None and cost.high < 0.0
    assert quality is not None and quality.value < 0.0
    assert told.shares_then["small"] > 0.85 and sum(told.shares_then.values()) == pytest.approx(1.0)
    assert told.day_usd.difference.interval is not None and told.requests_per_day > 0
    assert knobs.preview(admin, "auto", Knobs()).message == "These are the knobs in force."
    with pytest.raises(NotFound):
        knobs.preview(admin, "nowhere", Knobs())


def test_a_preview_of_knobs_no_longer_in_force_is_not_shown(admin: AdminServices) -> None:
    """A cached preview is not used once other knobs are in force."""
    write(admin, *explored(60))
    assert knobs.preview(admin, "auto", knobs.route_detail(admin, "auto").knobs).knobs.cost_weight == 0.5
    turn(admin, ANN, 0, cost_weight=0.9)
    now = knobs.route_detail(admin, "auto").knobs
    assert knobs.preview(admin, "auto", Knobs(cost_weight=0.9)).knobs == now  # a part of the log is enough
    assert knobs.preview(admin, "auto", now).knobs == now


def test_a_frontier_has_the_present_point_the_models_and_the_settings(admin: AdminServices) -> None:
    """The frontier is stored for the page; before it is computed, a note says so."""
    assert knobs.route_detail(admin, "auto").frontier.time_s is None
    write(admin, *explored(500))
    told = knobs.refresh_frontier(admin, "auto")
    kinds = [point.kind for point in told.points]
    assert kinds[:3] == ["now", "model", "model"] and kinds.count("knob") >= 5
    costs = {point.label: point.cost_usd.interval for point in told.points}
    assert costs["small"] is not None and costs["large"] is not None and costs["small"].high < costs["large"].low
    assert knobs.route_detail(admin, "auto").frontier.points == told.points


def test_knobs_are_tried_before_they_are_applied(admin: AdminServices) -> None:
    """A canary reaches the workers, the shadow doesn't; adopting turns the trial into the route's knobs."""
    tried = TrialWanted(kind="shadow", knobs=Knobs(cost_weight=1.0), version=0)
    knobs.start_trial(admin, ANN, "auto", tried)
    assert not read_settings(admin.run_dir).overlay.trials
    write(admin, *explored(300))
    with admin.store.engine.begin() as connection:  # begun before the traffic
        connection.exec_driver_sql("UPDATE settings SET value = json_set(value, '$.trial.since_s', 0)")
    admin.results.clear()
    shadow = knobs.route_detail(admin, "auto").trial_detail
    assert shadow is not None and shadow.rounds == 300 and shadow.agreement is not None
    assert shadow.cost_usd.interval is not None and shadow.cost_usd.interval.high < 0.0
    knobs.start_trial(admin, ANN, "auto", tried.model_copy(update={"kind": "canary", "share": 0.3, "version": 1}))
    (trial,) = read_settings(admin.run_dir).overlay.trials.values()
    assert (trial.share, trial.knobs) == (0.3, {"cost_weight": 1.0})
    assert knobs.route_detail(admin, "auto").knobs.cost_weight == 0.5
    knobs.adopt_trial(admin, BOB, "auto", 2)
    page = knobs.route_detail(admin, "auto")
    assert (page.knobs.cost_weight, page.trial, page.trial_detail) == (1.0, "", None)
    with pytest.raises(CallerError, match="there is no trial"):
        knobs.end_trial(admin, BOB, "auto", 3)


@pytest.mark.parametrize(("share", "stated"), [(0.0, {}), (1.0, {}), (0.1, {"explore": 0.5})])
def test_a_canary_that_could_not_be_one_is_refused(
    admin: AdminServices, share: float, stated: dict[str, float]
) -> None:
    """A canary is refused with a share of 0 or 1, or a knob that a canary can't change."""
    with pytest.raises(CallerError):
        wanted = TrialWanted(kind="canary", knobs=Knobs(**stated), share=share, version=0)
        knobs.start_trial(admin, ANN, "auto", wanted)


@pytest.mark.parametrize(
    "stated", ['{"max_latency_s": NaN}', '{"max_latency_s": 0}', '{"min_quality": 0}', '{"accept_at": 0}',
               '{"budget_usd_per_day": 1e300}'],
)  # fmt: skip
async def test_a_preview_of_an_invalid_knob_is_refused(
    admin: AdminServices, client: httpx.AsyncClient, stated: str
) -> None:
    """It is refused by the knob's name, as the change itself would be."""
    write(admin, *explored(60))
    sent: dict[str, Any] = {"content": stated.encode(), "headers": {"content-type": "application/json"}}
    answer = await client.post("/admin/routes/auto/preview", **sent)
    assert answer.status_code == 422 and answer.json()["error"]["param"] == stated.split('"')[1]


async def test_a_change_within_the_log_is_reported(
    admin: AdminServices, client: httpx.AsyncClient
) -> None:
    """A note warns where a model has become worse while decisions were logged."""
    log = explored(600)
    for decided, scored in zip(log[600::2], log[601::2], strict=True):
        assert isinstance(decided, DecisionRecord) and isinstance(scored, FeedbackRecord)
        write(admin, decided, replace(scored, score=0.1 if decided.model == "large" else scored.score))
    write(admin, *log[:600])
    told = (await client.post("/admin/routes/auto/preview", json={"cost_weight": 1.0})).json()
    (note,) = told["notes"]
    assert note.startswith("answers of large went from 0.9") and told["passed_over"] == 0
    assert note[1:] in (await client.get("/routes/auto/effect?cost_weight=1")).text


async def test_a_route_may_have_a_slash_in_its_name(admin: AdminServices, client: httpx.AsyncClient) -> None:
    """Its paths work in the API and on the dashboard, with further segments after the name; so do a tenant's."""
    admin.config = replace(admin.config, routes=[replace(admin.config.routes[0], name="team/auto")])
    admin._current = None
    assert (await client.get("/admin/routes/team/auto")).json()["name"] == "team/auto"
    change = {"knobs": {"cost_weight": 0.9}, "version": 0}
    assert (await client.put("/admin/routes/team/auto/knobs", json=change)).status_code == 200
    assert [one["version"] for one in (await client.get("/admin/routes/team%2Fauto/history")).json()] == [1]
    assert (await client.post("/admin/routes/team/auto/preview", json={})).json()["route"] == "team/auto"
    assert (await client.post("/admin/learning/team/auto/refresh")).json()["route"] == "team/auto"
    page = await client.get("/routes")
    assert 'href="/routes/team/auto"' in page.text
    assert (await client.get("/routes/team/auto")).status_code == 200
    assert (await client.get("/routes/team/auto/effect?cost_weight=0.1")).status_code == 200
    budget = {"budget_usd": 1.0, "version": 0}
    assert (await client.put("/admin/tenants/acme/eu", json=budget)).json()["setting"]["name"] == "tenant:acme/eu"


async def test_a_missing_page_is_answered_by_a_page(client: httpx.AsyncClient) -> None:
    """It has a link back; the API answers with an error in its own form."""
    page, api = await client.get("/nope"), await client.get("/admin/nope")
    assert page.status_code == api.status_code == 404
    assert "no such page" in page.text and 'href="/"' in page.text
    assert api.json()["error"]["code"] == "unknown_url"
