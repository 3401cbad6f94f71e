"""A sample that is asked before the job: what it teaches, and what it may cost."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from gateway.app import open_routers
from gateway.batch.dedupe import Deduper
from gateway.batch.gather import Gathered, GatherOptions, gather
from gateway.batch.pilot import Observation, Sample, agrees, asked, chosen_cells, pilot_of, updated
from gateway.batch.read import LineReader, ReadOptions
from gateway.batch.scan import Scanner
from gateway.config.load import parse
from gateway.config.settings import Settings
from gateway.config.types import Config
from gateway.journal.schema import open_engine
from gateway.journal.tables import decisions
from gateway.providers.scripted import ScriptedServer
from gateway.routes import RouteBook
from routers.features import shipped_featurizer
from tests.gateway.batch.planned import estimates
from tests.live import table


def observed(rows: range, place: int, usd: np.ndarray[Any, Any], **seen: Any) -> list[Observation]:
    return [Observation(row, place, True, float(usd[row, place]), **seen) for row in rows]


def test_costs_lengths_and_latencies_follow_the_pilot() -> None:
    """Costs of twice the prediction nearly double every prediction of that arm; the other arms stay."""
    job = estimates(100, 2, 0, barred=0.0)
    seen = [
        Observation(row, 0, True, 2 * float(job.cost_usd[row, 0]), 3 * float(job.output_tokens[row, 0]),
                    0.5 * float(job.latency_s[row, 0]))
        for row in range(60)
    ]  # fmt: skip
    fresh, report = updated(job, seen)
    ratio = (fresh.cost_usd / job.cost_usd)[0]
    assert ratio[0] == pytest.approx(2.0, abs=0.1) and ratio[1] == 1.0
    assert (fresh.output_tokens / job.output_tokens)[0, 0] == pytest.approx(3.0, abs=0.2)
    assert (fresh.latency_s / job.latency_s)[0, 0] == pytest.approx(0.5, abs=0.1)
    assert report.cost_ratio == {"m0": pytest.approx(float(ratio[0]), rel=1e-3)}
    assert fresh.cost_shift_sd[0] < job.cost_shift_sd[0] and fresh.cost_shift_sd[1] == job.cost_shift_sd[1]
    assert np.isnan(report.quality_shift.get("m0", np.nan))


def test_a_few_calls_change_little() -> None:
    """An outlier is shrunk towards the prediction."""
    job = estimates(50, 1, 0, barred=0.0)
    fresh, _ = updated(job, [Observation(3, 0, True, 10 * float(job.cost_usd[3, 0]), 1.0, 1.0)])
    assert 1.5 < (fresh.cost_usd / job.cost_usd)[0, 0] < 4.0


def test_quality_is_shifted_and_its_deviation_shrinks() -> None:
    """An arm that nearly always fails gets a low estimate; the more scores, the smaller the deviation."""
    job = estimates(400, 2, 1, barred=0.0)
    few, many = (updated(job, observed(range(n), 1, job.cost_usd, score=0.0))[0] for n in (5, 300))
    shift = [float((job.quality[:, 1] - fresh.quality[:, 1]).mean()) for fresh in (few, many)]
    assert 0 < shift[0] < shift[1]
    assert float(many.quality[:, 1].mean()) < 0.2
    assert many.quality_shift_sd[1] < few.quality_shift_sd[1] < 0.15
    np.testing.assert_array_equal(many.quality[:, 0], job.quality[:, 0])


def test_a_pilot_corrects_a_constant_error() -> None:
    """In a simulated job the posterior covers the truth."""
    rng, covered = np.random.default_rng(2), 0
    for _ in range(60):
        job = estimates(200, 1, int(rng.integers(10**6)), barred=0.0)
        truth = float(rng.normal(0, 0.1))
        right = rng.random(200) < np.clip(job.quality[:, 0] + truth, 0, 1)
        seen = [Observation(row, 0, True, 0.0, 0.0, 0.0, float(right[row])) for row in range(80)]
        fresh, report = updated(job, seen)
        covered += abs(report.quality_shift["m0"] - truth) <= 1.96 * float(fresh.quality_shift_sd[0])
    assert covered >= 52


def test_failed_calls_are_counted_and_teach_nothing() -> None:
    """A failed call says nothing about costs, but what it cost is paid."""
    job = estimates(20, 1, 0, barred=0.0)
    fresh, report = updated(job, [Observation(1, 0, False, 0.5)])
    np.testing.assert_array_equal(fresh.cost_usd, job.cost_usd)
    assert (report.calls, report.failures, report.cost_usd, report.scored) == (1, 1, 0.5, 0)


def test_a_pilot_asks_prompt_by_prompt() -> None:
    """Each drawn prompt is asked of every eligible arm, the cheapest first, so that an interrupted pilot is still
    paired.
    """
    job = estimates(50, 3, 0, barred=0.4)
    cells = chosen_cells(job, 10, seed=1)
    rows = list(dict.fromkeys(row for row, _ in cells))
    assert len(rows) == 10
    assert cells == [(row, place) for row in rows for place in (0, 1, 2) if np.isfinite(job.cost_usd[row, place])]
    assert chosen_cells(job, 10, seed=1) == cells != chosen_cells(job, 10, seed=2)


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("Paris", "paris", True), ("The answer is 42.", "42", True), ("42 or 43", "42", False),
        ("1,234 apples", "1234", True), ("So it is\nAnswer: B", "B", True), ("Blue, not red", "B", False),
        ("I think (C)", "C", True), ("", "42", False), ("x = 3.50", "3.5", True),
    ],
)  # fmt: skip
def test_answers_are_compared_with_a_reference(answer: str, reference: str, right: bool) -> None:
    """They match by the same words, the last number, or the end of a line."""
    assert agrees(answer, reference) is right


# -- through the request path


SCRIPTS = {
    "good": [{"text": "The answer is 4."}],
    "poor": [{"text": "No idea."}],
    "broken": [{"status": 400}],
}


def gathered(folder: Path, url: str, models: list[dict[str, Any]]) -> tuple[Config, Gathered]:
    routes = [{"name": "auto", "models": [model["name"] for model in models]}]
    config, problems = parse(table(url, folder, models, {"routes": routes}), {"UP_KEY": "sk-up"})
    assert config is not None, problems
    book = RouteBook(config, open_routers(config, Settings()))
    scanner = Scanner(LineReader(book, ReadOptions()), tuple(book.models), "default", "none")
    records = [
        (row + 1, json.dumps({"prompt": f"{row}: 2 + 2 = ?", "reference": "4", "max_tokens": 50}).encode())
        for row in range(20)
    ]
    how = GatherOptions(scanner, Deduper(shipped_featurizer()), folder / "prompts.jsonl")
    return config, gather(iter(records), how)


MODELS = [{"name": name, "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 4.0} for name in ("good", "poor", "broken")]


async def test_a_pilot_asks_real_models_and_scores_against_references(tmp_path: Path) -> None:
    """It learns costs, lengths and scores, and its cost is in the journal."""
    async with ScriptedServer(SCRIPTS) as upstream:
        config, found = gathered(tmp_path, upstream.url, MODELS)
        fresh, report = await asyncio.to_thread(pilot_of(config, Sample(6, 1.0)), found)
    assert (report.calls, report.failures, report.scored) == (18, 6, 12)
    shift = report.quality_shift
    assert shift["good"] > 0 > shift["poor"] and "broken" not in shift
    place = {arm.model: column for column, arm in enumerate(fresh.arms)}
    assert fresh.output_tokens[0, place["good"]] < found.estimates.output_tokens[0, place["good"]]
    with open_engine(str(config.storage.url)).connect() as connection:
        paid = connection.execute(
            sa.select(sa.func.sum(decisions.c.cost_nanousd)).where(decisions.c.key_id == "pilot")
        ).scalar_one()
    assert report.cost_usd == pytest.approx(paid / 1e9) and paid > 0


async def test_a_pilot_stays_within_its_budget(tmp_path: Path) -> None:
    """Calls that it doesn't cover are not made."""
    async with ScriptedServer(SCRIPTS) as upstream:
        config, found = gathered(tmp_path, upstream.url, MODELS[:2])
        seen = await asked(config, found, Sample(20, 0.0009))
    assert 0 < len(seen) < 40
    assert sum(one.cost_usd for one in seen) <= 0.0009


async def test_an_operators_check_scores_answers(tmp_path: Path) -> None:
    """Exit status 0 counts as right, 1 as wrong."""
    check = f"{sys.executable} -c \"import sys; sys.exit('answer' not in sys.stdin.read())\""
    async with ScriptedServer(SCRIPTS) as upstream:
        config, found = gathered(tmp_path, upstream.url, MODELS[:2])
        seen = await asked(config, found, Sample(2, 1.0, check))
    names = [found.estimates.arms[one.place].model for one in seen]
    assert {(name, one.score) for name, one in zip(names, seen, strict=True)} == {("good", 1.0), ("poor", 0.0)}
