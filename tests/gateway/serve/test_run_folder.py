"""The run folder: who has it, and which configuration children are started with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.serve.run_folder import RunFolder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration file; only its bytes matter here."""
    path = tmp_path / "headgate.toml"
    path.write_text("one")
    return path


def test_one_gateway_at_a_time_has_the_folder(tmp_path: Path) -> None:
    """A second one is refused, also after the folder was deleted and the first has created it anew."""
    first = RunFolder(tmp_path / "run", None)
    with pytest.raises(ConfigError, match=r"server\.run_dir: another gateway"):
        RunFolder(tmp_path / "run", None)
    shutil.rmtree(tmp_path / "run")
    assert not first.is_whole
    first.lay_anew()
    assert first.is_whole
    with pytest.raises(ConfigError, match=r"server\.run_dir: another gateway"):
        RunFolder(tmp_path / "run", None)


def test_a_folder_that_another_gateway_has_taken_is_not_laid_anew(tmp_path: Path) -> None:
    """The first gateway's folder was deleted, and a second one has created its own there."""
    first = RunFolder(tmp_path / "run", None)
    shutil.rmtree(tmp_path / "run")
    RunFolder(tmp_path / "run", None)
    assert not first.is_whole
    with pytest.raises(ConfigError, match=r"server\.run_dir: another gateway"):
        first.lay_anew()


@pytest.mark.parametrize("accepted", [True, False])
def test_children_read_the_configuration_that_was_accepted(tmp_path: Path, file: Path, accepted: bool) -> None:
    """A later change of the file reaches them only on trial, and for good once the trial is accepted; a folder that is
    laid anew has the same copy.
    """
    folder = RunFolder(tmp_path / "run", str(file))
    file.write_text("two")
    assert folder.config_copy.read_text() == "one"
    folder.begin_trial()
    trial = folder.config_copy
    assert trial.read_text() == "two"
    folder.end_trial(accepted=accepted)
    folder.discard_trial()
    expected = "two" if accepted else "one"
    assert folder.config_copy.read_text() == expected and not trial.exists()
    assert oct(folder.config_copy.stat().st_mode)[-3:] == "600"
    folder.config_copy.unlink()
    assert not folder.is_whole
    shutil.rmtree(folder.path)
    folder.lay_anew()
    assert folder.is_whole and folder.config_copy.read_text() == expected
