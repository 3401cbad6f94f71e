"""The numpy encoder computes what torch computes, from verified weights only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.minilm import MiniLM, OnnxEmbedder
from tests.cache.tiny_minilm import HEADS, LAYERS, WIDTH, checkpoint, checksum, weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny checkpoint in the published layout."""
    return checkpoint(tmp_path)


def test_it_computes_what_torch_computes(folder: Path) -> None:
    """The vector equals one computed from torch's own layers."""
    torch = pytest.importorskip("torch")
    nn = torch.nn.functional
    w = {name: torch.tensor(value) for name, value in weights().items()}
    ids = [1, 2, 3, 0]

    def norm(x: Any, name: str) -> Any:
        return nn.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    def linear(x: Any, name: str) -> Any:
        return nn.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        parts = [linear(x, f"{at}attention.self.{part}") for part in ("query", "key", "value")]
        q, k, v = (part.view(len(ids), HEADS, -1).transpose(0, 1) for part in parts)
        mixed = nn.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(len(ids), WIDTH)
        x = norm(x + linear(mixed, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm")
        inner = nn.gelu(linear(x, f"{at}intermediate.dense"))
        x = norm(x + linear(inner, f"{at}output.dense"), f"{at}output.LayerNorm")
    expected = nn.normalize(x.mean(0), dim=0).numpy()
    made = MiniLM(folder, sha256=checksum(folder))("lost my card please")
    assert np.allclose(made, expected, atol=1e-5)
    assert float(made @ made) == pytest.approx(1.0, abs=1e-5)


def test_changed_weights_are_refused(folder: Path) -> None:
    """Weights with another checksum are not loaded."""
    with pytest.raises(ValueError, match="SHA-256"):
        MiniLM(folder)
    before = checksum(folder)
    blob = bytearray((folder / "model.safetensors").read_bytes())
    blob[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(blob))
    with pytest.raises(ValueError, match="SHA-256"):
        MiniLM(folder, sha256=before)


def test_long_texts_are_cut(folder: Path) -> None:
    """A text longer than the model's context still has a vector."""
    model = MiniLM(folder, sha256=checksum(folder))
    assert model("card " * 1000).shape == (WIDTH,)
    assert model.id.startswith("minilm-numpy-")


def test_the_onnx_file_computes_the_same(folder: Path, tmp_path: Path) -> None:
    """The 32-bit file agrees up to rounding and the int8 file approximately. Both have versions of their own and are
    verified when opened.
    """
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from cache.minilm_onnx import export

    exact = MiniLM(folder, sha256=checksum(folder))
    export(folder, tmp_path / "float", sha256=checksum(folder), int8=False)
    export(folder, tmp_path / "int8", sha256=checksum(folder))
    full, small = OnnxEmbedder.of(tmp_path / "float"), OnnxEmbedder.of(tmp_path / "int8")
    for text in ("lost my card", "pin", "card " * 1000):
        assert np.allclose(full(text), exact(text), atol=1e-5)
        assert float(small(text) @ exact(text)) > 0.97
    assert full.dimension == WIDTH and len({exact.id, full.id, small.id}) == 3
    (tmp_path / "int8" / "model.onnx").write_bytes((tmp_path / "float" / "model.onnx").read_bytes())
    with pytest.raises(ValueError, match="SHA-256"):
        OnnxEmbedder.of(tmp_path / "int8")
