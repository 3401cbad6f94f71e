"""Figures with intervals, and the value of examples, computed from answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.solved import open_solved
from gateway.tiny import shown
from gateway.tiny.figures import difference, mean, ratio
from gateway.tiny.reply import Reply
from local_models.tasks import Question


def reply(right: bool, into: int = 10, cost_usd: float = 1.0) -> Reply:
    return Reply("2", right, "tiny-small", 1, cost_usd, 1.0, tokens=(into, 2))


def test_a_figure_has_an_interval_that_narrows_with_questions() -> None:
    """Constant data has an interval of width zero; ten times the questions give about a third of the width."""
    few: dict[str, Any] = mean([0.0, 1.0] * 20)
    many: dict[str, Any] = mean([0.0, 1.0] * 200)
    assert few["value"] == many["value"] == 0.5 and mean([0.3] * 9) == pytest.approx(dict.fromkeys(few, 0.3))
    width, narrow = (found["high"] - found["low"] for found in (few, many))
    assert 0.2 < width < 0.4 and narrow == pytest.approx(width / 10**0.5, rel=0.2)


def test_differences_are_paired() -> None:
    """Where the same questions get the same scores, the difference has no uncertainty."""
    hard = [0.0, 1.0, 0.0, 1.0, 1.0] * 8
    assert difference(hard, [one - 0.25 for one in hard]) == pytest.approx({"value": 0.25, "low": 0.25, "high": 0.25})
    assert ratio([0.0, 0.0], [0.0, 0.0])["value"] is None


def test_only_right_answers_become_cases(tmp_path: Path) -> None:
    """The file has only right answers, in the format that a route reads."""
    questions = [Question("larger", f"larger 1 {n}", f"larger of 1 and {n}?", str(n)) for n in (2, 3)]
    shown.write_cases(tmp_path / "cases.jsonl", questions, [reply(True), reply(False)])
    assert len(open_solved(str(tmp_path / "cases.jsonl"), 4).stores["default"]) == 1


def test_examples_are_laid_beside_none() -> None:
    """The report has accuracy, tokens and cost of each way, and what choosing the number of cases saves."""
    asked = {
        "shown": [reply(True, 90)] * 10,
        "shown-as-needed": [reply(True, 30)] * 9 + [reply(False, 30)],
        "climbed": [reply(True)] * 5 + [reply(False)] * 5,
        "climbed-shown": [reply(True, cost_usd=0.5)] * 10,
        "climbed-remembered": [reply(True, cost_usd=0.0), reply(True)] * 5,
    }
    found = shown.report([reply(False)] * 10, [reply(True, cost_usd=2.0)] * 10, asked, [reply(False)] * 10)
    assert found["tokens_saved_as_needed"]["value"] == pytest.approx(2 / 3)
    assert found["accuracy_as_needed_minus_always"]["value"] == pytest.approx(-0.1)
    assert found["accuracy_as_needed_minus_without"]["value"] == pytest.approx(0.9)
    assert found["cascade_accuracy_gain"]["value"] == pytest.approx(0.5) and found["answer_in_sight"]["value"] == 0.0
    assert found["cascade_half_asked_before"]["replayed"]["value"] == 0.5
    assert found["cascade_half_asked_before"]["cost_ratio"]["value"] == pytest.approx(0.25)
    assert found["cascade_shown_as_needed"]["cost_ratio"]["value"] == pytest.approx(0.25)
