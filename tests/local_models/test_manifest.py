"""Checksums of model folders, among them the shipped ones."""

from collections.abc import Callable
from pathlib import Path

import pytest

from local_models import shipped_models
from local_models.manifest import ManifestError, verify_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two files with a manifest."""
    (tmp_path / "a.bin").write_bytes(b"abc")
    (tmp_path / "b.json").write_text("{}")
    write_manifest(tmp_path, {"seed": 1})
    return tmp_path


def test_the_shipped_models_match_their_manifests() -> None:
    """Both shipped folders verify."""
    models = shipped_models()
    assert {"tiny-small", "tiny-large"} <= models.keys()
    assert all(verify_manifest(folder) for folder in models.values())


def test_an_untouched_folder_verifies(folder: Path) -> None:
    """Nothing was changed, and nothing is raised."""
    assert verify_manifest(folder)


def test_a_folder_without_manifest_is_not_verified(tmp_path: Path) -> None:
    """Folders made elsewhere have none, which is no error."""
    assert not verify_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda file: file.write_bytes(b"abd"), "differs"),
        (lambda file: file.write_bytes(b"ab"), "2 bytes"),
        (lambda file: file.unlink(), "missing"),
    ],
)
def test_a_changed_truncated_or_missing_file_is_named(
    folder: Path, change: Callable[[Path], object], says: str
) -> None:
    """Each kind of damage raises an error that names the file."""
    change(folder / "a.bin")
    with pytest.raises(ManifestError, match=rf"a\.bin.*{says}"):
        verify_manifest(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema":1}'])
def test_a_broken_manifest_is_an_error(folder: Path, text: str) -> None:
    """An unreadable manifest is not treated as a missing one."""
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ManifestError, match="no manifest"):
        verify_manifest(folder)
