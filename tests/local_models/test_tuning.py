"""An engine that tunes its settings: what it records and tries, without changing an answer."""

from dataclasses import replace
from pathlib import Path

import pytest

from local_models import shipped_models
from local_models.engine import Engine, EngineOptions
from local_models.errors import LocalModelError
from local_models.options import setting_of
from local_models.request import Usage
from local_models.served import tuned
from local_models.settings import Setting, read_runs, roofline_s
from local_models.shape import read_shape
from local_models.tuning import MOST_TRIED, PRIOR, WINDOW_ANSWERS, Tuner, candidates, repeated_tokens
from tests.local_models.checkpoints import greedy, prompts, run

GIVEN = Setting(False, 512, 0, True)
SHAPE = read_shape(shipped_models()["tiny-small"])


def window(tuner: Tuner, factor: float) -> None:
    """This many answers, which took `factor` times the roofline."""
    case = replace(tuner.case, streams=4, prompt_tokens=60, output_tokens=20, shared=0.0, repeated=0.5)
    seconds = factor * roofline_s(case, tuner.setting)
    for _ in range(WINDOW_ANSWERS):
        tuner.step(4, seconds / 4)
        tuner.answer(Usage(prompt_tokens=60, output_tokens=20), [5, 6, 7] * 6)


def test_it_tries_a_few_settings_and_keeps_the_best(tmp_path: Path) -> None:
    """Where one setting is fast and all others are slow, it is found, kept, and used at the next start."""
    tuner = Tuner.start(SHAPE, GIVEN, tmp_path / "m.jsonl", int8_too=False)
    used = []
    for _ in range(12):
        used += [tuner.setting] if tuner.setting not in used else []
        last = tuner.setting
        window(tuner, 1000.0 if tuner.setting in used[:2] else 1.0)
    assert 2 < len(used) <= MOST_TRIED and last == used[2]
    again = Tuner.start(SHAPE, GIVEN, tmp_path / "m.jsonl", int8_too=False)
    assert again.tried.keys() == tuner.tried.keys() and again.setting == last


def test_runs_are_recorded_without_text(tmp_path: Path) -> None:
    """A run is one line: counts, the setting, and the seconds of the concurrent answers."""
    tuner = Tuner.start(SHAPE, GIVEN, tmp_path / "m.jsonl", int8_too=False)
    setting = tuner.setting
    window(tuner, 2.0)
    (ran,) = read_runs(tmp_path / "m.jsonl")
    assert (ran.setting, ran.case.streams, ran.case.prompt_tokens, ran.case.output_tokens) == (setting, 4, 60, 20)
    assert ran.case.repeated == pytest.approx(13 / 18) and ran.case.parameters == SHAPE.parameters
    assert ran.seconds > 0


def test_eight_bits_need_permission(tmp_path: Path) -> None:
    """Without it they are not tried; a model loaded with them keeps them; they are never switched on while running."""
    assert not any(one.int8 for one in candidates(GIVEN, int8_too=False))
    assert {one.int8 for one in candidates(GIVEN, int8_too=True)} == {False, True}
    assert all(one.int8 for one in candidates(replace(GIVEN, int8=True), int8_too=False))
    tuner = Tuner.start(SHAPE, GIVEN, tmp_path / "m.jsonl", int8_too=True)
    bits = tuner.setting.int8
    for _ in range(6):
        window(tuner, 5.0)
        assert tuner.setting.int8 is bits


def test_a_damaged_or_unwritable_file_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The engine continues."""
    file = tmp_path / "m.jsonl"
    file.write_text('{"case": 1}\n')
    window(Tuner.start(SHAPE, GIVEN, file, int8_too=False), 1.0)
    assert "recorded runs are left aside" in caplog.text and len(read_runs(file)) == 1
    window(Tuner.start(SHAPE, GIVEN, tmp_path / "no" / "m.jsonl", int8_too=False), 1.0)
    assert "could not be recorded" in caplog.text


def test_no_answer_changes_while_settings_do(tmp_path: Path) -> None:
    """An engine that tries settings gives the answers of one with the defaults, token for token."""
    folder = shipped_models()["tiny-small"]
    asked = prompts(3 * WINDOW_ANSWERS, seed=11, longest=40)
    requests = [greedy(str(at), prompt, 6) for at, prompt in enumerate(asked)]
    options = EngineOptions(kv_tokens=4096, settings="auto", settings_folder=str(tmp_path))
    engine = tuned("a/b", folder, options)
    assert engine.tuner is not None
    said = run(engine, requests)
    plain = run(Engine.load(folder, EngineOptions(kv_tokens=4096)), requests)
    assert {name: answer.ids for name, answer in said.items()} == {name: answer.ids for name, answer in plain.items()}
    runs = read_runs(tmp_path / "a_b.settings.jsonl")
    assert len(runs) == 3 and setting_of(engine.options) == engine.tuner.setting


def test_tuning_needs_a_file() -> None:
    """Without one the model isn't loaded."""
    with pytest.raises(LocalModelError, match="settings_folder"):
        tuned("a", shipped_models()["tiny-small"], EngineOptions(settings="auto"))


def test_the_shipped_runs_can_be_read() -> None:
    """There are sixteen settings for each of thirty cases: six shapes and five workloads."""
    assert len(read_runs(PRIOR)) == 480


def test_repetition_counts_repeated_continuations() -> None:
    """In `abcabcabd` three letters follow the same two as before; a text of one letter has none."""
    assert repeated_tokens([1, 2, 3, 1, 2, 3, 1, 2, 4]) == 3
    assert repeated_tokens([1]) == 0


def test_a_running_engine_takes_other_settings() -> None:
    """Speculation starts and stops, and chunk size and prefix sharing change."""
    engine = Engine.load(shipped_models()["tiny-small"], EngineOptions(kv_tokens=1024))
    engine.use(replace(GIVEN, draft_tokens=2))
    run(engine, [greedy("a", [5, 6] * 8, 8)])
    assert engine.drafted_tokens
    engine.use(GIVEN)
    drafted = engine.drafted_tokens
    run(engine, [greedy("b", [5, 6] * 8, 8)])
    assert engine.drafted_tokens == drafted
    assert (engine.scheduler.step_tokens, engine.blocks.share) == (512, True)
