"""Engine settings that are chosen from runs of other workloads."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_models.settings import (
    Case,
    Ran,
    Setting,
    SettingsChooser,
    features,
    read_runs,
    roofline_s,
    write_runs,
)

SETTINGS = [Setting(*parts) for parts in itertools.product((False, True), (64, 512), (0, 4), (True, False))]
CASE = Case(30_000_000, 12, 384, 3072, 4, 15.0, 70.0, 8, 320, 32, 0.0, 0.3)
cases = st.builds(
    Case,
    parameters=st.integers(10**5, 10**10),
    layers=st.just(12),
    hidden=st.just(384),
    kv_values=st.integers(64, 10**5),
    weight_bytes=st.sampled_from([2, 4]),
    read_gb_s=st.floats(1, 5000),
    gflop_s=st.floats(1, 10**6),
    streams=st.integers(1, 256),
    prompt_tokens=st.integers(1, 10**5),
    output_tokens=st.integers(1, 10**4),
    shared=st.floats(0, 1),
    repeated=st.floats(0, 1),
)


def world(case: Case, setting: Setting) -> float:
    """A machine on which integer products help few streams only, and speculation only repetitive answers."""
    log_factor = 0.5 + setting.int8 * (0.4 * math.log2(case.streams) - 1.0)
    log_factor += setting.draft_tokens / 4 * (0.5 - 1.5 * case.repeated)
    return roofline_s(case, setting) * math.exp(log_factor)


def some_cases(seed: int, count: int = 24) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [
        replace(
            CASE, parameters=int(10 ** rng.uniform(6.5, 8.5)), streams=int(2 ** rng.integers(0, 6)),
            prompt_tokens=int(2 ** rng.integers(6, 11)), shared=float(rng.uniform(0, 0.9)),
            repeated=float(rng.uniform(0, 0.9)),
        )
        for _ in range(count)
    ]  # fmt: skip


@given(cases, st.sampled_from(SETTINGS))
def test_predictions_are_positive_seconds(case: Case, setting: Setting) -> None:
    """The roofline is positive and finite for every case, and so are features and predictions."""
    assert 0 < roofline_s(case, setting) < math.inf
    assert np.isfinite(features(case, setting)).all()
    assert 0 < SettingsChooser().seconds(case, setting) < math.inf


def test_without_runs_a_prediction_is_the_roofline() -> None:
    """A decode step that reads a quarter of the weights is faster."""
    chooser = SettingsChooser()
    assert chooser.seconds(CASE, SETTINGS[0]) == pytest.approx(roofline_s(CASE, SETTINGS[0]))
    alone = replace(CASE, streams=1, prompt_tokens=1)
    assert chooser.choose(alone, SETTINGS).int8


def test_learned_settings_are_near_optimal_for_new_cases() -> None:
    """Learned from 24 cases of a world with known rules, the choices for 24 others cost on average at most 2 % more
    than the best ones, and less than the roofline's.
    """
    chooser = SettingsChooser(Ran(c, s, world(c, s)) for c in some_cases(0) for s in SETTINGS)
    unlike, roofline = [], []
    for case in some_cases(1):
        best = min(world(case, setting) for setting in SETTINGS)
        unlike.append(world(case, chooser.choose(case, SETTINGS)) / best)
        roofline.append(world(case, SettingsChooser().choose(case, SETTINGS)) / best)
    assert np.mean(unlike) < 1.02 < np.mean(roofline)


def test_learning_run_by_run_equals_learning_from_all() -> None:
    runs = [Ran(case, s, world(case, s)) for case in some_cases(2, 4) for s in SETTINGS]
    slowly = SettingsChooser()
    for ran in runs:
        slowly.learn(ran)
    assert slowly.runs == len(runs)
    for setting in SETTINGS:
        assert slowly.seconds(CASE, setting) == pytest.approx(SettingsChooser(runs).seconds(CASE, setting))


def test_runs_are_read_back_from_their_file(tmp_path: Path) -> None:
    """A line that is no run is named."""
    runs = [Ran(CASE, setting, 1.5) for setting in SETTINGS]
    path = tmp_path / "runs.jsonl"
    write_runs(path, runs)
    assert read_runs(path) == runs
    path.write_text(path.read_text() + '{"case": {}}\n')
    with pytest.raises(ValueError, match=f"line {len(runs) + 1}"):
        read_runs(path)
