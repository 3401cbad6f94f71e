"""The value of solved cases, from rounds in which chance decided whether they were shown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import typer
from msgspec.structs import replace
from typer.testing import CliRunner

from gateway.commands.cascade import add_to
from gateway.config.load import parse
from gateway.config.types import Config
from gateway.journal.record import DecisionRecord, FeedbackRecord
from gateway.journal.store import open_store
from gateway.journal.write import write_records
from gateway.learn.alarms import harmful_cases, raised
from gateway.learn.cases_worth import CasesWorth, harmless_p, scores_by_cases
from gateway.learn.dataset import Log, Scored, log_of
from gateway.learn.loop import Loop
from routers.simple import Weighted
from tests.gateway.learn.world import Town

ROUNDS = Town(1).decisions(Weighted({"small": 1.0}), 3000)


def drawn(n: int, seed: int, share: float = 0.1, *, gain: float = 0.0, right: float = 0.7, **more: Any) -> list[Scored]:
    """Rounds with cases: right with probability `right` without showing them, and `gain` more with."""
    rng = np.random.default_rng(seed)
    withheld, luck = rng.random(n) < share, rng.random(n)
    return [
        (replace(record, cases_shown=0 if none else 3, cases_withheld=share, **more),
         float(drawn < right + (0.0 if none else gain)))
        for (record, _), none, drawn in zip(ROUNDS, withheld.tolist(), luck.tolist(), strict=False)
    ]  # fmt: skip


def mean(scores: list[float | None]) -> float:
    return float(np.array(scores, float).mean())


def with_scores(log: Log, score: np.ndarray, withheld: np.ndarray, share: float) -> Log:
    """The same log with other scores, as drawn."""
    shown = [
        replace(one, cases_shown=0 if none else 3, cases_withheld=share)
        for one, none in zip(log.records, withheld.tolist(), strict=True)
    ]
    return dataclasses.replace(log, score=score, records=tuple(shown))


def test_the_gain_is_the_difference_of_both_groups() -> None:
    """There are plain means, their difference, and counts."""
    rows = drawn(1000, 0, gain=0.2)
    found = scores_by_cases(log_of(rows))
    sides = {none: [score for record, score in rows if (record.cases_shown == 0) == none] for none in (True, False)}
    assert (found.withheld_rounds, found.shown_rounds) == (len(sides[True]), len(sides[False]))
    assert found.withheld == pytest.approx(mean(sides[True])) and found.shown == pytest.approx(mean(sides[False]))
    assert found.gained is not None and found.shown is not None and found.withheld is not None
    assert found.gained.value == pytest.approx(found.shown - found.withheld)
    assert 0.0 < found.gained.low < 0.2 < found.gained.high


@pytest.mark.parametrize(("right", "gain", "n"), [(0.5, 0.0, 300), (0.97, 0.0, 250), (0.8, 0.15, 400)])
def test_the_interval_has_its_stated_coverage(right: float, gain: float, n: int) -> None:
    """It contains the truth in at least 92 of 100 logs, also where the few rounds without cases are nearly all right.
    """
    rng, log, held = np.random.default_rng(5), log_of(drawn(n, 0)), []
    for _ in range(250):
        withheld = rng.random(n) < 0.1
        score = (rng.random(n) < right + np.where(withheld, 0.0, gain)).astype(float)
        found = scores_by_cases(with_scores(log, score, withheld, 0.1)).gained
        if found is not None:
            held.append(found.low <= gain <= found.high)
    assert len(held) > 200 and np.mean(held) >= 0.92


def test_a_changed_share_causes_no_bias() -> None:
    """Most cases were withheld while questions were easy and few since they are hard, so plain means would call cases
    harmful.
    """
    easy, hard = drawn(1500, 1, 0.9, right=0.9), drawn(3000, 2, 0.1, right=0.3)[1500:]
    found = scores_by_cases(log_of([*easy, *hard]))
    plain = [mean([s for r, s in [*easy, *hard] if bool(r.cases_shown) is shown]) for shown in (True, False)]
    assert plain[0] < plain[1] - 0.3
    assert found.gained is not None and abs(found.gained.value) < 0.15
    assert found.gained.low < 0.0 < found.gained.high
    assert harmless_p(log_of([*easy, *hard])) > 0.05


@pytest.mark.parametrize(
    "changes",
    [
        {"cases_shown": None, "cases_withheld": 0.0}, {"cases_shown": 3, "cases_withheld": 0.0},
        {"cases_shown": 0, "cases_withheld": 1.0}, {"cache": "hit"}, {"job": "job_1"}, {"status": 499},
    ],
)  # fmt: skip
def test_rounds_without_a_random_choice_are_left_out(changes: dict[str, Any]) -> None:
    """There were no cases, they were certain to be shown, or the answer came from a cache, a batch job or after the
    client had left.
    """
    rows = drawn(400, 3, gain=-0.4)
    others = [(replace(record, **changes), 1.0) for record, _ in drawn(800, 4)[400:]]
    assert scores_by_cases(log_of([*rows, *others])) == scores_by_cases(log_of(rows))
    assert harmless_p(log_of([*rows, *others])) == harmless_p(log_of(rows))
    alone = log_of([*others, ROUNDS[-1]])
    assert scores_by_cases(alone) == CasesWorth() and harmless_p(alone) == 1.0


def test_every_models_answers_in_a_cascade_count() -> None:
    """With only the first model's answers, the comparison would leave out the requests that needed a second one."""
    rows = drawn(400, 6)
    climbed = [
        (replace(record, plan=("small", "large"), answered_model="large" if score else "small"), score)
        for record, score in rows
    ]
    assert scores_by_cases(log_of(climbed)) == scores_by_cases(log_of(rows))


def test_few_rounds_give_no_interval() -> None:
    """There are means and counts all the same."""
    found = scores_by_cases(log_of(drawn(40, 9)))
    assert found.gained is None and found.shown is not None and 0 < found.withheld_rounds < 10


def test_older_records_count_as_shown_nothing() -> None:
    """Records of an earlier release have neither field."""
    old = msgspec.json.decode(b'{"t": "decision.1", "id": "dec_1", "time_s": 1.0}', type=DecisionRecord)
    assert old.cases_shown is None and old.cases_withheld == 0.0


def test_harmful_cases_raise_an_alarm() -> None:
    """It says by how much and what to do, and isn't raised if the route no longer shows cases."""
    log = log_of(drawn(1500, 10, gain=-0.3))
    (alarm,) = [one for one in raised(log) if one.kind == "harmful cases"]
    assert -0.45 < alarm.value < -0.15 and "`solved`" in alarm.message
    assert "harmful cases" not in {one.kind for one in raised(log, shows_cases=False)}


@pytest.mark.parametrize(("share", "right"), [(0.1, 0.7), (0.1, 0.98), (0.5, 0.5)])
def test_harmless_cases_raise_no_alarm(share: float, right: float) -> None:
    """There is none at any look at 12 growing logs without an effect, nor at 12 in which cases help a little."""
    rng, log = np.random.default_rng(11), log_of(drawn(2000, 0))
    for gain in (0.0, 0.02):
        for _ in range(12):
            withheld = rng.random(len(log)) < share
            score = (rng.random(len(log)) < right + np.where(withheld, 0.0, gain)).astype(float)
            whole = with_scores(log, score, withheld, share)
            assert not any(harmful_cases(whole.rows(np.arange(upto))) for upto in range(400, 2001, 400))


def cases_of(rows: list[Scored], folder: Path, *, solved: bool) -> Config:
    """A route's configuration and journal."""
    url = f"sqlite:///{folder}/journal.db"
    (folder / "cases.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    file = {"solved": str(folder / "cases.jsonl")} if solved else {}
    config, problems = parse({
        "server": {"run_dir": str(folder)}, "storage": {"url": url},
        "providers": [{"name": "up", "kind": "scripted"}], "models": [{"name": "small", "provider": "up"}],
        "routes": [{"name": "auto", "models": ["small"], **file}],
    }, {})  # fmt: skip
    assert config is not None, problems
    store = open_store(url)
    said = [
        FeedbackRecord(id=f"fb{record.id}", time_s=2.0, decision_id=record.id, tenant="t", score=score)
        for record, score in rows
    ]
    with store.engine.begin() as connection:
        write_records(connection, [*(record for record, _ in rows), *said])
    store.close()
    return config


@pytest.mark.parametrize("solved", [True, False])
def test_the_learning_loop_raises_the_alarm_while_cases_are_shown(tmp_path: Path, solved: bool) -> None:
    """Once cases are switched off, the alarm ends."""
    config = cases_of(drawn(600, 10, gain=-0.6), tmp_path, solved=solved)
    loop = Loop.opened(config, "auto")
    assert ("harmful cases" in {one.kind for one in loop.step(2e9).alarms}) == solved
    loop.store.close()


def test_the_command_that_collects_cases_reports_their_gain(tmp_path: Path) -> None:
    """It has an interval and counts; without scores it is unknown."""
    config = cases_of(drawn(600, 0, gain=0.2), tmp_path, solved=True)
    file = tmp_path / "headgate.toml"
    file.write_text(f'[server]\nrun_dir = "{tmp_path}"\n[storage]\nurl = "{config.storage.url}"\n')
    app = typer.Typer()
    add_to(app)
    words = ["cascade", "solved", "--out", str(tmp_path / "more.jsonl"), "--config", str(file), "--json", "--route"]
    told = json.loads(CliRunner().invoke(app, [*words, "auto"], catch_exceptions=False).output)
    assert told["scored_with_cases"] + told["scored_with_cases_withheld"] == 600
    gained = told["score_gained_by_cases_so_far"]
    assert gained["value"] == pytest.approx(told["score_with_cases"] - told["score_with_cases_withheld"])
    assert 0.0 < gained["low"] < 0.2 < gained["high"]
    told = json.loads(CliRunner().invoke(app, [*words, "quiet"], catch_exceptions=False).output)
    assert told["scored_with_cases"] == 0 and told["score_gained_by_cases_so_far"] is None


def test_repeated_looks_raise_no_false_alarms() -> None:
    """The final p-value is the least of all looks: of 400 logs without an effect at most 5 % fall to 0.05."""
    rng, log = np.random.default_rng(12), log_of(drawn(1000, 0))
    least = []
    for _ in range(400):
        withheld = rng.random(len(log)) < 0.1
        score = (rng.random(len(log)) < 0.6).astype(float)
        least.append(harmless_p(with_scores(log, score, withheld, 0.1)))
    assert np.mean(np.array(least) <= 0.05) <= 0.05
    whole = with_scores(log, score, withheld, 0.1)
    looks = [harmless_p(whole.rows(np.arange(upto))) for upto in range(50, 1001, 50)]
    assert looks == sorted(looks, reverse=True)
