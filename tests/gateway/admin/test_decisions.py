from __future__ import annotations

import random
from typing import Any

import httpx
import msgspec
import pytest

from gateway.admin import parts
from gateway.admin.actor import Actor
from gateway.admin.decisions import explain, facets, replay, search
from gateway.admin.services import AdminServices
from gateway.admin.shapes.decisions import ReplayWanted
from gateway.admin.shapes.models import ModelWanted
from gateway.dashboard.forms import shaped
from gateway.dashboard.pages import decisions as pages
from gateway.errors import CallerError, NotFound
from gateway.journal import search as journal
from gateway.journal.outcome import NAMES, flags_of
from gateway.journal.record import DecisionRecord, EvidenceRecord
from gateway.journal.search import DecisionFilter
from tests.gateway.admin.traffic import explored, recent, write
from tests.gateway.journal.records import attempt, feedback

OPERATOR, VIEWER = Actor("ann", "operator"), Actor("vic", "viewer")


def mixed(count: int, seed: int = 0) -> list[DecisionRecord]:
    rng = random.Random(seed)
    return [
        recent(
            number, tenant=rng.choice(["acme", "other"]), route=rng.choice(["auto", "code"]),
            answered_model=rng.choice(["small", "large"]), cost_nanousd=rng.choice([0, 1000, 50_000]),
            status=rng.choice([200, 200, 500]), cache=rng.choice(["miss", "hit"]),
            key_id=rng.choice(["key_1", "audit"]), time_s=1.7e9 + number // 2,
        )
        for number in range(count)
    ]  # fmt: skip


FILTERS: list[dict[str, Any]] = [
    {}, {"tenant": "acme"}, {"route": "code", "answered_model": "large"}, {"outcome": "error"}, {"outcome": "ok"},
    {"outcome": "cached", "tenant": "other"}, {"min_cost_usd": 2e-5}, {"max_cost_usd": 0.0}, {"key_id": "audit"},
    {"since_s": 1.7e9 + 20, "until_s": 1.7e9 + 60}, {"errors_only": True, "route": "auto"}, {"tenant": "nobody"},
]  # fmt: skip


@pytest.mark.parametrize("asked", FILTERS)
@pytest.mark.parametrize("looked_at", [7, 10_000])
def test_following_the_pages_finds_every_match_once(
    admin: AdminServices, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], looked_at: int
) -> None:
    """Every filter and page size finds the same decisions, newest first, as a scan of all decisions."""
    monkeypatch.setattr(journal, "LOOKED_AT", looked_at)
    records = mixed(150)
    write(admin, *records)
    wanted, seen, cursor = DecisionFilter(**asked), list[str](), ""
    for _ in range(200):
        page = search(admin, wanted, cursor, limit=10)
        seen += [row.id for row in page.data]
        if page.next is None:
            break
        cursor = page.next
    expected = sorted((one for one in records if fits(one, wanted)), key=lambda one: (one.time_s, one.id), reverse=True)
    assert seen == [one.id for one in expected]


def fits(one: DecisionRecord, wanted: DecisionFilter) -> bool:
    flags, cost_usd = flags_of(one), one.cost_nanousd / 1e9
    outcome = True if not wanted.outcome else flags == 0 if wanted.outcome == "ok" else flags & NAMES[wanted.outcome]
    names = ("tenant", "route", "answered_model", "key_id")
    return bool(
        all(getattr(wanted, name) in ("", getattr(one, name)) for name in names)
        and wanted.since_s <= one.time_s < wanted.until_s and outcome and (not wanted.errors_only or one.status >= 400)
        and (wanted.min_cost_usd is None or cost_usd >= wanted.min_cost_usd)
        and (wanted.max_cost_usd is None or cost_usd <= wanted.max_cost_usd)
    )  # fmt: skip


def test_an_invalid_search_is_refused(admin: AdminServices) -> None:
    """An unknown outcome, a time range that ends before it begins, a cost that is no number, and a foreign cursor are
    refused.
    """
    for wanted, cursor in (
        (DecisionFilter(outcome="nice"), ""), (DecisionFilter(since_s=5, until_s=1), ""), (DecisionFilter(), "x:y"),
        (DecisionFilter(min_cost_usd=float("nan")), ""), (DecisionFilter(since_s=float("nan")), ""),
    ):  # fmt: skip
        with pytest.raises(CallerError):
            search(admin, wanted, cursor)


@pytest.mark.parametrize("latency_s", [None, 1.5])
def test_a_latency_bound_without_known_latencies_is_explained(admin: AdminServices, latency_s: float | None) -> None:
    """`max_latency_s` doesn't exclude a model of unknown latency, and the explanation says so."""
    record = recent(1, knobs={"max_latency_s": 2.0})
    candidates = tuple(msgspec.structs.replace(one, latency_s=latency_s) for one in record.candidates)
    write(admin, msgspec.structs.replace(record, candidates=candidates))
    said = " ".join(explain(admin, "chatcmpl-1", OPERATOR).summary)
    told = f"The latency of {record.model} was not known yet, so the bound of 2 s was not applied to it."
    assert (told in said) == (latency_s is None)


def test_a_decision_is_explained_in_plain_words(admin: AdminServices) -> None:
    """The explanation says which models were excluded and why, which one answered, what was discarded, and what other
    models would have cost.
    """
    record = recent(
        1, plan=("small", "large"), thresholds=(0.8, None), answered_model="large", verdict="last", cost_nanousd=10_000,
        attempts=(attempt("small", evidence=EvidenceRecord(confidence=0.6)), attempt("large", cost_nanousd=9000)),
        excluded={"tiny": "context too short"},
    )  # fmt: skip
    write(admin, record, feedback(1, 0.25))
    told = explain(admin, "chatcmpl-1", OPERATOR)
    said = " ".join(told.summary)
    assert "tiny could not answer: prompt and answer would not fit into its context." in said
    assert "small answered after 200 ms, and its answer was not kept (confidence 0.60, needed 0.80)." in said
    assert "Of $0.00001 in all, $0.000001 went to answers that were not kept." in said
    assert [one.kept for one in told.attempts] == [False, True]
    assert [(one.model, one.chosen, one.answered) for one in told.candidates] == [
        ("small", True, False), ("large", False, True),
    ]  # fmt: skip
    assert told.excluded[0].meaning == "prompt and answer would not fit into its context"
    assert told.counterfactual_usd == {"small": pytest.approx(3.2e-6), "large": pytest.approx(6.4e-5)}
    assert told.feedback[0].score == 0.25 and told.outcomes == ["escalated"]
    with pytest.raises(NotFound):
        explain(admin, "dec_2", OPERATOR)


def test_another_models_cost_includes_its_searches(admin: AdminServices) -> None:
    """Its searches, other hosted tools and one-hour cache writes are counted at its own prices. A price that only the
    file has survives a change made in the admin API.
    """
    prices = {"input_usd_per_mtok": "2", "output_usd_per_mtok": "8", "web_search_usd": "0.01"}
    large = shaped(ModelWanted, {"provider": "acme", **prices, "version": 0})
    parts.put_model(admin, Actor("ada", "admin"), "large", large)
    usage = {"input": 10, "cache_write_1h": 2, "output": 5, "web_search": 3, "file_search": 4}
    write(admin, recent(1, attempts=(attempt("small", usage=usage),)))
    told = explain(admin, "dec_1", OPERATOR).counterfactual_usd
    assert told == {"small": pytest.approx(3.2e-6), "large": pytest.approx(6.4e-5 + 0.03 + 0.008)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cache": "semantic", "model": "", "attempts": (), "saved_nanousd": 5000}, "words, which saved $0.000005"),
        ({"model": "", "attempts": (), "error": "over_budget", "status": 429, "answered_model": ""}, "(over_budget)"),
        ({"reason": "pinned", "model": "small"}, "The client named small itself"),
        ({"knobs": {"cost_weight": 0.9}}, "with its own cost weight 0.9"),
        ({"cases_shown": 3}, "3 solved cases were shown."),
        ({"cases_shown": 0, "cases_withheld": 0.1}, "Solved cases were found but withheld, to measure their worth."),
    ],
)
def test_each_way_to_an_answer_has_its_sentence(admin: AdminServices, changes: dict[str, Any], words: str) -> None:
    """Explanations of answers from the cache, refusals, pinned models, a request's own knobs, and solved cases."""
    write(admin, recent(1, **changes))
    assert words in " ".join(explain(admin, "dec_1", VIEWER).summary)


def test_texts_are_not_for_viewers(admin: AdminServices) -> None:
    """An operator sees prompt and answer; a viewer sees the decision without them."""
    write(admin, recent(1, prompt_text="my secret question", answer_text="my secret answer"))
    assert explain(admin, "dec_1", OPERATOR).prompt_text == "my secret question"
    assert "my secret" not in explain(admin, "dec_1", VIEWER).model_dump_json()


def test_a_decision_is_made_again_with_another_knob(admin: AdminServices) -> None:
    """The recorded and the new choice are shown side by side; a decision without a router can't be repeated."""
    (record, *_) = explored(1)
    write(admin, record, recent(2, id="dec_hit", cache="hit", cache_why={"entry": "e"}, model=""))
    told = replay(admin, "dec_0", ReplayWanted(cost_weight=1.0))
    assert told.replayed.model == "small" and told.recorded.model in ("small", "large")
    assert any("cost_weight 1" in note for note in told.notes)
    with pytest.raises(CallerError, match="nothing to decide again"):
        replay(admin, "dec_hit", ReplayWanted())
    with pytest.raises(CallerError, match="can't be opened"):
        replay(admin, "dec_0", ReplayWanted(router="no/such.safetensors"))


def test_what_can_be_asked_for_comes_from_the_sums(admin: AdminServices) -> None:
    """The facets list recent routes, models, tenants and keys, each once."""
    write(admin, recent(1), recent(2, route="code", tenant="other"))
    assert facets(admin) == {"route": ["auto", "code"], "model": ["small"], "tenant": ["acme", "other"],
                            "key_id": ["key_1"]}  # fmt: skip


async def test_long_facets_are_typed_instead_of_listed(
    admin: AdminServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand keys are too many for a list that the page loads again with every refresh."""
    monkeypatch.setattr(pages, "MOST_CHOICES", 1)
    write(admin, recent(1, key_id="key_a"), recent(2, key_id="key_b"))
    page = (await client.get("/decisions?key_id=key_b")).text
    assert '<input id="f-key_id" name="key_id" value="key_b"' in page and "key_a" not in page
    assert '<select id="f-route"' in page


async def test_every_path_and_response_is_typed(client: httpx.AsyncClient) -> None:
    """The OpenAPI document lists every path of every page, and all responses have a type."""
    told = (await client.get("/admin/openapi.json")).json()
    for path in ("/admin/overview", "/admin/routes/{route}/preview", "/admin/decisions/{id}/replay", "/admin/learning",
                 "/admin/certificates/{route}", "/admin/cache/entries", "/admin/fleet", "/admin/keys", "/admin/tenants",
                 "/admin/labels", "/admin/audit", "/admin/users", "/admin/session"):  # fmt: skip
        for method, operation in told["paths"][path].items():
            for status, answer in operation["responses"].items():
                if status.startswith("2") and status != "204":
                    assert answer["content"]["application/json"]["schema"], (method, path)
