"""A recorded decision is made again from what the journal has of it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from gateway.commands import replay
from gateway.errors import CallerError
from gateway.journal.store import open_store
from gateway.journal.write import write_decisions
from gateway.learn.whatif import Policy
from gateway.redecide import choose_again, compared, draw_of, notes_on, refuse_undecided, vector_of
from routers.registry import open_router
from routers.types import Candidate, Knobs
from tests.gateway.journal.records import decision
from tests.gateway.test_answer import CHAT, post
from tests.live import live

MODELS = [
    {"name": "small", "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.4},
    {"name": "large", "input_usd_per_mtok": 2.0, "output_usd_per_mtok": 8.0},
    {"name": "blind", "tools": False},
]
ROUTES = [{"name": "auto", "models": ["small", "large", "blind"], "router": "default", "explore": 0.5}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
WISHES: list[dict[str, object]] = [
    *({} for _ in range(20)), {"headgate": {"cost_weight": 0.9}}, {"headgate": {"models": ["small", "large"]}},
    {"tools": [TOOL]}, {"max_tokens": 5},
]  # fmt: skip
CONFIG = """
[server]
run_dir = "{folder}/run"
[storage]
url = "sqlite:///{folder}/journal.db"
[[providers]]
name = "up"
kind = "scripted"
[[models]]
name = "small"
provider = "up"
[[models]]
name = "large"
provider = "up"
[[routes]]
name = "auto"
models = ["small", "large"]
router = "weighted"
weights = {{ small = 4.0, large = 1.0 }}
"""
WEIGHTED = decision(1, excluded={}, router="weighted@1", reason="by weight", draw=0.1)


async def test_the_same_router_repeats_its_choice(tmp_path: Path) -> None:
    """For any draw, knobs and exclusions, the record alone leads to the same choice and probabilities."""
    async with live(tmp_path, models=MODELS, routes=ROUTES) as gateway:
        route = gateway.services.book.find("auto")
        assert route.router is not None
        policy = Policy(route.router, [model.candidate for model in route.models], route.knobs, route.default_model)
        chosen = set()
        for number, wish in enumerate(WISHES):
            messages = [{"role": "user", "content": f"prove lemma {number}"}]
            answer = await post(gateway.url, {**CHAT, "model": "auto", "messages": messages, **wish})
            record = await gateway.decision(answer.headers["x-headgate-decision-id"])
            told = compared(record, choose_again(record, policy, Knobs()), notes_on(record, policy.router, Knobs()))
            assert told["same_choice"] and told["notes"] == [], told
            chosen.add(record.model)
        await gateway.rest()
    assert len(chosen) > 1
    certain = msgspec.structs.replace(record, explore=False)
    turned = choose_again(certain, policy, Knobs(cost_weight=1.0))
    assert turned.model == "small" and turned.propensity == 1.0


def test_a_draw_that_was_not_kept_is_one_that_leads_to_the_recorded_model() -> None:
    """Old records without a draw still repeat the choice, with a note that the draw is not theirs."""
    router = open_router("weighted", weights={"small": 4.0, "large": 1.0})
    policy = Policy(router, [Candidate("small"), Candidate("large")], Knobs())
    for model in ("small", "large"):
        record = decision(1, model=model, excluded={}, router="weighted@1")
        assert 0.0 < draw_of(record) < 1.0
        assert choose_again(record, policy, Knobs()).model == model
        assert any("drawn" in note for note in notes_on(record, policy.router, Knobs()))


def test_features_of_another_version_are_refused() -> None:
    """A router can't use a vector of another version, and without a text no other can be made."""
    with pytest.raises(CallerError, match="version static-9; the record has features of version static-1 and no text"):
        vector_of(decision(1, vector=b"\0\0", features_version="static-1"), "static-9")


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"model": "", "cache": "hit", "cache_why": {"entry": "e"}}, "by the cache"), ({"reason": "pinned"}, "itself")],
)
def test_what_no_router_decided_is_refused(changes: dict[str, object], said: str) -> None:
    """Cache hits and pinned models have no choice to repeat."""
    with pytest.raises(CallerError, match=said):
        refuse_undecided(decision(1, **changes))


def test_the_command_shows_what_would_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The route's own router repeats the recorded choice; with another router the differences are named."""
    (tmp_path / "headgate.toml").write_text(CONFIG.format(folder=tmp_path))
    monkeypatch.chdir(tmp_path)
    store = open_store(f"sqlite:///{tmp_path}/journal.db")
    with store.engine.begin() as connection:
        write_decisions(connection, [WEIGHTED])
    store.close()
    app = typer.Typer()
    app.callback()(lambda: None)
    replay.add_to(app)

    def told(*words: str) -> dict[str, object]:
        found = CliRunner().invoke(app, ["replay", "dec_1", *words, "--json"], catch_exceptions=False)
        result: dict[str, object] = json.loads(found.stdout)
        return result

    assert told()["same_model"] is True
    other = told("--router", "rules")
    assert other["same_choice"] is False and "router" in other["differs"]  # type: ignore[operator]
    shown = CliRunner().invoke(app, ["replay", "dec_1", "--router", "cheapest"], catch_exceptions=False)
    assert "weighted@1 then, cheapest@1 now" in shown.stdout.replace("\n", " ")
    with pytest.raises(CallerError, match="router 'nope' is unknown"):
        CliRunner().invoke(app, ["replay", "dec_1", "--router", "nope"], catch_exceptions=False)
