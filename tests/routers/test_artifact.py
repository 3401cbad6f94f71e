from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from routers.artifact import ArtifactError, Card, load_artifact, save_artifact

CARD = Card("linear", "3", "f.1", ("a", "b"), {"ridge": 1.0}, "2", "abc", ("set",), {"aiq": 0.8})
ARRAYS: dict[str, Any] = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "one.safetensors"
    save_artifact(path, CARD, ARRAYS)
    return path


def test_an_artefact_is_read_back(saved: Path) -> None:
    """Card and arrays survive the round trip, and no partial file remains."""
    card, arrays = load_artifact(saved, "f.1")
    assert card == CARD
    assert {name: array.tolist() for name, array in arrays.items()} == {n: a.tolist() for n, a in ARRAYS.items()}
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_one_changed_byte_is_detected(saved: Path) -> None:
    """The checksum covers every byte of the arrays."""
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ArtifactError, match="checksum"):
        load_artifact(saved)


def test_a_changed_card_is_detected(saved: Path) -> None:
    """The checksum covers the card, too."""
    saved.write_bytes(saved.read_bytes().replace(b"0.8", b"0.9", 1))
    with pytest.raises(ArtifactError, match="checksum"):
        load_artifact(saved)


def test_features_of_another_version_are_refused(saved: Path) -> None:
    """A router never reads vectors of a version that it wasn't trained on."""
    with pytest.raises(ArtifactError, match=r"features_version 'f\.1'.*'f\.2'"):
        load_artifact(saved, "f.2")


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x80\x04pickle"])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is no safetensors file raises a clear error."""
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="not an artefact"):
        load_artifact(path)


def test_tensors_without_a_card_are_refused(tmp_path: Path) -> None:
    """A safetensors file of another program has no card."""
    path = tmp_path / "weights.safetensors"
    save_file({"w": np.zeros(2)}, path)
    with pytest.raises(ArtifactError, match="foreign"):
        load_artifact(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error names the path."""
    with pytest.raises(ArtifactError, match=r"nowhere.*no such file"):
        load_artifact(tmp_path / "nowhere")
