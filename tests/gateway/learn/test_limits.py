"""Output limits of answers, learned from the journal."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from gateway.journal.record import AttemptRecord, CandidateRecord, DecisionRecord
from gateway.learn.dataset import Log, Scored, log_of
from gateway.learn.limits import LEAST_ANSWERS, Limits, limits_of
from routers.types import Candidate, Knobs
from tests.gateway.learn.world import described

VECTOR = described("how long is a river")


def answered(n: int, *, limit: int, seed: int = 0, mean: float = 100.0, score: float = 1.0) -> list[Scored]:
    """Answers that need an exponential number of tokens; those that need more than `limit` are truncated and wrong."""
    rng = np.random.default_rng(seed)
    rows: list[Scored] = []
    for i, need in enumerate(np.ceil(rng.exponential(mean, n)).astype(int).tolist()):
        used = min(need, limit)
        record = DecisionRecord(
            id=f"{seed}-{i}", time_s=float(i), route="auto", model="m", answered_model="m", status=200,
            features_version=VECTOR.features_version, vector=VECTOR.vector.astype("<f2").tobytes(),
            max_output_tokens=limit, cost_nanousd=1000 * used,
            attempts=(AttemptRecord(model="m", status=200, usage={"output": used}, cost_nanousd=1000 * used),),
            candidates=(CandidateRecord(model="m", probability=0.5), CandidateRecord(model="n", probability=0.5)),
        )  # fmt: skip
        rows.append((record, score if need < limit else 0.0))
    return rows


def told(log: Log, weight: float = 0.0) -> Limits:
    candidates = [Candidate("m", 0.1, 1.0), Candidate("n", 0.1, 1.0)]
    (found,) = limits_of(log, candidates, {"m": 4096, "n": 4096}, Knobs(cost_weight=weight))
    return found


def test_truncated_answers_count_as_unfinished() -> None:
    """Although half of all answers were truncated at 64 tokens, the share that finishes within 128 is estimated
    rightly.
    """
    found = told(log_of(answered(600, limit=64) + answered(600, limit=4096, seed=1)))
    assert found.answers == 1200 and 250 < found.cut < 400
    share = dict(zip(found.tokens, found.finished, strict=True))
    assert share[32] == pytest.approx(1 - np.exp(-0.32), abs=0.04)
    assert share[128] == pytest.approx(1 - np.exp(-1.28), abs=0.05)


def test_without_a_price_the_longest_limit_is_best() -> None:
    """Quality alone needs the longest answer's limit; a price for tokens gives a shorter one."""
    log = log_of(answered(400, limit=4096, score=0.3))
    free, dear = told(log), told(log, 0.9)
    assert list(free.worth) == sorted(free.worth)
    assert dear.best is not None and free.best is not None and dear.best < free.best


def test_few_answers_give_no_best_limit() -> None:
    """Their figures are shown all the same."""
    assert told(log_of(answered(LEAST_ANSWERS - 1, limit=4096))).best is None


def test_the_worth_of_a_limit_is_the_quality_within_it_less_the_price_of_its_tokens() -> None:
    """Every answer has 100 tokens at one dollar per million. At the default cost weight the mean call costs .2 quality
    points, so a token costs .002. Within 128 tokens all answers finish, at 96 tokens by the middle of the interval;
    within 64 none finishes, and all 64 are spent.
    """
    (record, _), *_ = answered(1, limit=4096)
    answer = replace(record.attempts[0], usage={"output": 60, "reasoning": 40})
    made = [replace(record, id=str(i), attempts=(answer,), cost_nanousd=100_000) for i in range(60)]
    others = [replace(one, id=f"o{one.id}", answered_model="n") for one in made]
    log = log_of([*((one, 1.0) for one in made), *((one, 0.0) for one in others), (replace(made[0], id="u"), None)])
    found = told(log, 0.5)
    assert (found.answers, found.cut, found.best) == (60, 0, 128)
    worth = dict(zip(found.tokens, found.worth, strict=True))
    assert worth[128] == pytest.approx(1.0 - 0.002 * 96) and worth[64] == pytest.approx(-0.002 * 64)
    (twice,) = limits_of(log, [Candidate("m", 0.1, 2.0)], {"m": 4096}, Knobs())
    assert dict(zip(twice.tokens, twice.worth, strict=True))[128] == pytest.approx(1.0 - 0.004 * 96)


@pytest.mark.parametrize(("asked", "stated", "cut"), [(None, 100, 1), (100, 4096, 1), (4096, 100, 1), (None, 101, 0)])
def test_the_lower_of_two_limits_cuts_an_answer(asked: int | None, stated: int, cut: int) -> None:
    """The limit is the request's or the model's own, and an answer that is as long as its limit was cut."""
    (record, _), *_ = answered(1, limit=4096)
    answer = replace(record.attempts[0], usage={"output": 100})
    log = log_of([(replace(record, attempts=(answer,), max_output_tokens=asked), 1.0)])
    (found,) = limits_of(log, [Candidate("m", 0.1, 1.0)], {"m": stated}, Knobs())
    assert found.cut == cut and found.tokens == (16, 32, 64, 128)


def test_an_answer_as_long_as_a_power_of_two_finishes() -> None:
    """There is always a limit above the longest answer."""
    (record, _), *_ = answered(1, limit=4096)
    answer = replace(record.attempts[0], usage={"output": 64})
    found = told(log_of([(replace(record, attempts=(answer,)), 1.0)]))
    assert (found.tokens, found.finished, found.cut) == ((16, 32, 64, 128), (0.0, 0.0, 1.0, 1.0), 0)
