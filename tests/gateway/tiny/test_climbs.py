"""What `headgate cascade tiny` computes from answers, without the models."""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import pytest

from cascade.logs import read_logged
from gateway.tiny.climbs import against, kept_local, sampled, threshold, voted, write_data
from gateway.tiny.reply import Reply
from local_models.tasks import Question


def reply(right: bool, confidence: float = 1.0, *, model: str = "tiny-small", calls: int = 0, text: str = "") -> Reply:
    large = model == "tiny-large"
    return Reply(text, right, model, calls, 1.0 if large else 0.1, confidence, large)


def test_the_threshold_sends_a_budgeted_share_to_the_large_model() -> None:
    """As many of the least confident answers are sent as the budget allows, whether they are right or not."""
    small = [reply(True, 0.9)] * 70 + [reply(False, 0.4)] * 30
    assert 0.8 < threshold(small) <= 0.9
    assert threshold([*small, *small[-20:]]) <= 0.4


def test_a_cascade_is_measured_beside_the_large_model() -> None:
    """The report has shares of accuracy, calls and cost."""
    climbed = [reply(True)] * 60 + [reply(True, model="tiny-large")] * 39 + [reply(False)]
    found: dict[str, Any] = against(climbed, [reply(True, model="tiny-large")] * 100)
    assert found["share_of_large"]["value"] == pytest.approx(0.99)
    assert found["large_share"]["value"] == pytest.approx(0.39) and 0.25 < found["large_share"]["low"] < 0.35
    assert found["cost_ratio"]["value"] == pytest.approx((61 * 0.1 + 39) / 100)


def test_what_stays_local_is_counted_beside_the_quality_kept() -> None:
    """It is counted over all requests and by kind; a request that reached the large model doesn't count."""
    easy, hard = Question("larger", "a", "a?", "1"), Question("total", "b", "b?", "2")
    climbed = [reply(True)] * 50 + [reply(True)] * 20 + [reply(True, model="tiny-large")] * 30
    found = kept_local(climbed, [reply(True, model="tiny-large")] * 100, [easy] * 50 + [hard] * 50)
    assert found["kept_local"]["value"] == pytest.approx(0.7) and 0.55 < found["kept_local"]["low"] < 0.65
    assert found["share_of_large"]["value"] == 1.0
    assert {kind: figure["value"] for kind, figure in found["kept_local_of"].items()} == {"larger": 1.0, "total": 0.4}


def test_answers_are_written_as_outcome_data(tmp_path: Path) -> None:
    """Both models' answers, costs and confidences are written as the training commands read them."""
    questions = [Question("larger", f"larger 1 {n}", f"larger of 1 and {n}?", str(n)) for n in (2, 3)]
    small, large = [reply(True, 0.5), reply(False, 0.0)], [reply(True, model="tiny-large")] * 2
    write_data(tmp_path / "answers", questions, [small, large])
    logged = read_logged(tmp_path / "answers")
    assert logged.data.models == ("tiny-large", "tiny-small") and set(logged.data.splits) == {"train"}
    assert logged.data.scores.tolist() == [[1.0, 1.0], [1.0, 0.0]]
    assert logged.data.confidence[0].tolist() == pytest.approx([0.0, log(0.5)]) and logged.data.confidence[1, 1] < -60
    assert logged.data.cost_usd[0].tolist() == pytest.approx([1.0, 0.1])


def test_votes_and_calls_are_counted() -> None:
    """The most frequent of a fixed number of answers counts; adaptive tries count as many calls as they took."""
    questions = [Question("larger", "larger 1 2", "larger of 1 and 2?", "2")] * 2
    tries = [[reply(True, text="2")] * 2, [reply(False, text="1")] * 2, [reply(False, text="1")] * 2]
    assert voted(tries, questions) == [0.0, 0.0] and voted(tries[:2], questions) == [1.0, 1.0]
    found = sampled([reply(True, calls=1), reply(False, calls=2)], tries, questions)
    assert found["calls"]["value"] == pytest.approx(1.5) and found["saved"]["value"] == pytest.approx(0.5)
    assert found["accuracy_minus_all_tries"]["value"] == pytest.approx(0.5)
    assert found["accuracy_minus_2_tries"]["value"] == pytest.approx(-0.5)
