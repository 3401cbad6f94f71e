"""Fits of latency on answers whose speed is known."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from routers.bench.latency import (
    MEAN,
    OUTPUT,
    PACE,
    PREDICTED,
    PROMPT,
    as_text,
    compared,
    figures,
    halves,
    non_negative,
)
from routers.outcomes import DataError, Outcomes


def timed(n: int = 300, read_s: float = 0.0, noise: float = 0.0, seed: int = 0) -> Outcomes:
    """Two models of different speed: half a second, and 20 or 5 ms per token. Long questions have long answers."""
    rng = np.random.default_rng(seed)
    long = rng.random(n) < 0.5
    prompt = np.tile(rng.integers(10, 4000, (n, 1)), (1, 2)).astype(float)
    output = np.where(long[:, None], 400.0, 40.0) * rng.uniform(0.8, 1.2, (n, 2))
    took = (0.5 + read_s * prompt + output * (0.02, 0.005)) * rng.lognormal(0.0, noise, (n, 2))
    blank, cost = np.full((n, 2), np.nan), np.ones((n, 2))
    texts = tuple(f"{'prove this theorem of algebra' if one else 'hi'} {i}" for i, one in enumerate(long))
    return Outcomes(
        tuple(f"q{i}" for i in range(n)), texts, ("t",) * n, np.array(["test" if i % 3 == 0 else "" for i in range(n)]),
        ("slow", "fast"), cost, cost, cost, prompt, output, took, blank, blank,
    )  # fmt: skip


def test_figures_of_known_fits() -> None:
    """A fit that is a tenth too high has an error of a tenth; the mean explains nothing. Missing values don't count."""
    measured = np.array([[1.0], [2.0], [3.0], [np.nan]])
    assert figures(1.1 * measured, measured)["error"] == pytest.approx(0.1)
    assert figures(measured, measured)["r2"] == pytest.approx(1.0)
    assert figures(np.full((4, 1), 2.0), measured)["r2"] == pytest.approx(0.0)


def test_latency_is_predicted_from_the_answers_tokens() -> None:
    """A constant plus a time per token is fitted exactly, where the mean is far off; lengths predicted from the text
    are in between.
    """
    report = compared(timed(), resamples=40)
    assert (report["held out"], report["trained on"]) == (100, 200)
    for part in (report["all models"], *report["models"].values()):
        error = {fit: part[fit]["error"]["value"] for fit in (MEAN, OUTPUT, PREDICTED)}
        assert error[OUTPUT] < 1e-9 < error[PREDICTED] < 0.5 * error[MEAN]
        assert part[OUTPUT]["r2"]["low"] > 0.999 and part[OUTPUT]["error_minus_mean"]["high"] < 0.0
    assert report["models"]["slow"]["p95"] == pytest.approx(1.0)


def test_the_prompts_time_is_fitted() -> None:
    """Where reading the prompt takes long, the fit without it is far off, and the one with it is not."""
    part = compared(timed(read_s=0.002, noise=0.05), resamples=40)["models"]["fast"]
    for fit in (PROMPT, PACE):
        assert part[fit]["error"]["high"] < 0.08 < 0.2 < part[OUTPUT]["error"]["low"]
        assert part[fit]["r2"]["low"] > 0.9 > part[OUTPUT]["r2"]["high"]


def test_no_part_of_a_latency_is_negative() -> None:
    """A column with a negative coefficient is left out, and the rest is fitted without it."""
    x = np.column_stack([np.ones(50), np.arange(50.0), np.arange(50.0) ** 2])
    found = non_negative(x, 3.0 + 2.0 * x[:, 1] - 0.001 * x[:, 2])
    assert found[2] == 0.0 and found[:2] == pytest.approx(np.linalg.lstsq(x[:, :2], x @ (3, 2, -0.001), rcond=None)[0])


def test_a_log_may_have_gaps() -> None:
    """With one answer per query three in ten are held out. A fit without its data is left out, and so is a model with
    few answers.
    """
    data = timed(noise=0.1)
    took = np.where(np.arange(2) == np.arange(300)[:, None] % 2, data.latency_s, np.nan)
    log = replace(data, splits=np.array([""] * 300), latency_s=took, input_tokens=np.full((300, 2), np.nan))
    report = compared(log, resamples=40)
    assert not {PROMPT, PACE} & set(report["all models"]) and 60 < report["held out"] < 120
    assert report["all models"][OUTPUT]["error"]["value"] < 0.12
    took[40:, 1] = np.nan
    assert halves(log)[0].models == ("slow",)
    assert "fast" not in as_text(compared(log, resamples=0))
    with pytest.raises(DataError, match="latency_s"):
        halves(replace(log, latency_s=np.full((300, 2), np.nan)))


def test_the_command_refuses_a_folder_without_latencies(tmp_path: Path) -> None:
    """The error is one line with the required fields."""
    from tests.cascade.worlds import logged, write

    write(logged(60), tmp_path)
    words = [sys.executable, "-m", "routers.bench.latency", "--data", str(tmp_path)]
    ended = subprocess.run(words, env=os.environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and "output_tokens" in ended.stderr and "Traceback" not in ended.stderr
