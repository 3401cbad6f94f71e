"""MiniLM's vectors without a deep-learning framework: six BERT layers in numpy, weights verified by checksum.

For evaluation and for routes where ten milliseconds do not matter; `OnnxEmbedder` runs an ONNX file of the same
model on onnxruntime in one to five. One text at a time, so that a vector never depends on its neighbours in a batch.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ALL_MINILM_L6_V2 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of all-MiniLM-L6-v2's model.safetensors."""
MAX_TOKENS = 256


def read_verified(file: Path, sha256: str) -> bytes:
    """The bytes of a file. Raises ValueError where its SHA-256 is another."""
    blob = file.read_bytes()
    digest = hashlib.sha256(blob).hexdigest()
    if digest != sha256:
        raise ValueError(f"{file} has SHA-256 {digest}, not {sha256}")
    return blob


def open_tokenizer(file: Path) -> Any:
    """The tokenizer of a file, which cuts at MAX_TOKENS and pads nothing."""
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()
    return tokenizer


def read_weights(folder: Path, sha256: str) -> tuple[dict[str, Floats], dict[str, Any]]:
    """A checkpoint's weights and its configuration. ValueError for another checksum."""
    from safetensors.numpy import load

    blob = read_verified(folder / "model.safetensors", sha256)
    floats = {
        name.removeprefix("bert."): np.asarray(value, np.float32)
        for name, value in load(blob).items()
        if value.dtype.kind == "f"
    }
    return floats, json.loads((folder / "config.json").read_text())


class MiniLM:
    """Sentence vectors of unit length from a folder with model.safetensors, config.json and tokenizer.json."""

    def __init__(self, folder: str | Path, *, sha256: str = ALL_MINILM_L6_V2) -> None:
        folder = Path(folder)
        self._w, config = read_weights(folder, sha256)
        self.id = f"minilm-numpy-{sha256[:12]}"
        self.dimension: int = config["hidden_size"]
        self._heads: int = config["num_attention_heads"]
        self._layers: int = config["num_hidden_layers"]
        self._tokenizer = open_tokenizer(folder / "tokenizer.json")

    def __call__(self, text: str) -> Floats:
        """The vector of one text."""
        ids = self._tokenizer.encode(text).ids
        x = self._w["embeddings.word_embeddings.weight"][ids]
        x = x + self._w["embeddings.position_embeddings.weight"][: len(ids)]
        x = self._norm(x + self._w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(self._layers):
            x = self._layer(x, f"encoder.layer.{layer}.")
        mean: Floats = x.mean(0)
        vector: Floats = np.divide(mean, np.sqrt(mean @ mean))
        return vector

    def _layer(self, x: Floats, name: str) -> Floats:
        attended = self._linear(self._attend(x, f"{name}attention.self."), f"{name}attention.output.dense")
        x = self._norm(x + attended, f"{name}attention.output.LayerNorm")
        inner = _gelu(self._linear(x, f"{name}intermediate.dense"))
        return self._norm(x + self._linear(inner, f"{name}output.dense"), f"{name}output.LayerNorm")

    def _attend(self, x: Floats, name: str) -> Floats:
        n, width = x.shape
        q, k, v = (
            self._linear(x, f"{name}{part}").reshape(n, self._heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(width / self._heads))
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed: Floats = (scores / scores.sum(-1, keepdims=True)) @ v
        return mixed.transpose(1, 0, 2).reshape(n, width)

    def _linear(self, x: Floats, name: str) -> Floats:
        y: Floats = x @ self._w[f"{name}.weight"].T + self._w[f"{name}.bias"]
        return y

    def _norm(self, x: Floats, name: str) -> Floats:
        centred = x - x.mean(-1, keepdims=True)
        scale: Floats = np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-12)
        y: Floats = centred / scale * self._w[f"{name}.weight"] + self._w[f"{name}.bias"]
        return y


class OnnxEmbedder:
    """Sentence vectors of an ONNX file (inputs token ids, mask and types or the first of them; output one unit vector),
    on one thread. `cache.minilm_onnx` makes such a file.
    """

    def __init__(self, file: str | Path, tokenizer: str | Path, *, sha256: str) -> None:
        from onnxruntime import InferenceSession, SessionOptions

        blob = read_verified(Path(file), sha256)
        self.id = f"onnx-{sha256[:12]}"
        options = SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session: Any = InferenceSession(blob, options)
        self._inputs: list[str] = [given.name for given in self._session.get_inputs()]
        self.dimension = int(self._session.get_outputs()[0].shape[-1])
        self._tokenizer = open_tokenizer(Path(tokenizer))

    @classmethod
    def of(cls, folder: str | Path) -> OnnxEmbedder:
        """The embedder of a folder that `cache.minilm_onnx` wrote."""
        folder = Path(folder)
        about = json.loads((folder / "embedder.json").read_text())
        return cls(folder / "model.onnx", folder / "tokenizer.json", sha256=about["sha256"])

    def __call__(self, text: str) -> Floats:
        """The vector of one text, alone in its batch: dynamic int8 vectors change with their company."""
        ids = np.array([self._tokenizer.encode(text).ids])
        given = (ids, np.ones_like(ids), np.zeros_like(ids))
        vector: Floats = self._session.run(None, dict(zip(self._inputs, given, strict=False)))[0][0]
        return vector


def _gelu(x: Floats) -> Floats:
    from scipy.special import erf

    y: Floats = x * np.float32(0.5) * (1 + erf(x * np.float32(0.7071067811865476)))
    return y
