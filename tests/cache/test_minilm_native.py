"""The encoder in C computes what the numpy encoder computes, up to its 7-bit quantization, and only from verified
files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cache.evaluate import load_embedder
from cache.minilm import MiniLM
from cache.minilm_native import NativeEmbedder, _compile, export, pack
from gateway.config.types import Embedding
from gateway.embedders import open_embedder
from gateway.errors import ConfigError
from tests.cache.tiny_minilm import WIDTH, checkpoint, checksum


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A published checkpoint, and the folder compiled from it."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    published = checkpoint(tmp_path_factory.mktemp("published"))
    made = tmp_path_factory.mktemp("made")
    export(published, made, sha256=checksum(published))
    try:
        NativeEmbedder(made)
    except OSError as error:
        pytest.skip(str(error))
    return published, made


@pytest.mark.parametrize("words", [*range(1, 19), 255, 300])
def test_its_vectors_are_near_the_published_ones(folders: tuple[Path, Path], words: int) -> None:
    """Texts of all lengths, whether or not they fill whole tiles of rows, have unit vectors with a cosine near one to
    the published ones.
    """
    published, made = folders
    exact, native = MiniLM(published, sha256=checksum(published)), NativeEmbedder(made)
    text = " ".join(["lost", "my", "card", "pin", "what"][(3 * n + n // 5) % 5] for n in range(words))
    assert float(native(text) @ exact(text)) > 0.99
    assert float(native(text) @ native(text)) == pytest.approx(1.0, abs=1e-5)


def test_a_text_has_one_vector(folders: tuple[Path, Path]) -> None:
    """A text's vector is the same to the last bit, whatever was encoded before."""
    native = NativeEmbedder(folders[1])
    before = native("lost my card")
    native("pin " * 300)
    assert np.array_equal(native("lost my card"), before)
    assert native.dimension == WIDTH and native.id.startswith("native-")


def test_every_processor_makes_the_same_vector(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Replicas on different machines share a cache, so the vector is the same to the last bit with and without VNNI."""
    plain = tmp_path / "plain"
    shutil.copytree(folders[1], plain)
    _compile(plain / "embedder.so", "-DWITHOUT_VNNI")
    told = json.loads((plain / "embedder.json").read_text())
    digest = hashlib.sha256((plain / "embedder.so").read_bytes()).hexdigest()
    (plain / "embedder.json").write_text(json.dumps(told | {"library_sha256": digest}))
    here, there = NativeEmbedder(folders[1]), NativeEmbedder(plain)
    for words in (*range(1, 18), 300):
        text = " ".join(["lost", "my", "card", "pin", "what"][(3 * n + n // 5) % 5] for n in range(words))
        assert np.array_equal(here(text), there(text)), words


def test_a_text_of_no_tokens_has_no_vector(folders: tuple[Path, Path]) -> None:
    """A text without tokens is refused, because its vector would have no meaning."""
    with pytest.raises(ValueError, match="tokenizer"):
        NativeEmbedder(folders[1])("")


@pytest.mark.parametrize("name", ["weights.safetensors", "embedder.so"])
def test_changed_files_are_refused(folders: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    """Neither weights nor code with another checksum are loaded; the gateway reports it at the start."""
    folder = tmp_path / "made"
    shutil.copytree(folders[1], folder)
    blob = bytearray((folder / name).read_bytes())
    blob[-1] ^= 1
    (folder / name).write_bytes(bytes(blob))
    with pytest.raises(ValueError, match="SHA-256"):
        NativeEmbedder(folder)
    with pytest.raises(ConfigError, match="SHA-256"):
        open_embedder(Embedding(kind="folder", path=str(folder)))


def test_the_gateway_and_the_evaluation_open_it(folders: tuple[Path, Path]) -> None:
    """Both make the same vectors from the folder, under the same version."""
    featurizer = open_embedder(Embedding(kind="folder", path=str(folders[1])))
    embed, name = load_embedder(f"native:{folders[1]}")
    assert featurizer is not None and np.array_equal(featurizer.embed("pin"), embed("pin"))
    assert name == NativeEmbedder(folders[1]).id
    assert json.loads((folders[1] / "embedder.json").read_text())["kind"] == "native"
    assert embed("pin").shape == (WIDTH,)


def test_odd_shapes_are_refused() -> None:
    """A matrix that doesn't fill whole panels is refused when the files are made."""
    with pytest.raises(ValueError, match="7 by 8"):
        pack(np.ones((7, 8), np.float32))


def test_a_missing_compiler_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler no folder is made, and the error says why."""
    published = checkpoint(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="compiler"):
        export(published, tmp_path / "out", sha256=checksum(published))
