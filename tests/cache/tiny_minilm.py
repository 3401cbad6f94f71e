"""A randomly initialised tiny BERT encoder, in the files of a published one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

WIDTH, INNER, LAYERS, HEADS = 16, 32, 2, 4


def weights() -> dict[str, NDArray[np.float32]]:
    """Random weights of a small BERT."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> NDArray[np.float32]:
        return (0.3 * rng.normal(size=shape)).astype(np.float32)

    made = {
        "embeddings.word_embeddings.weight": draw(5, WIDTH),
        "embeddings.position_embeddings.weight": draw(300, WIDTH),
        "embeddings.token_type_embeddings.weight": draw(2, WIDTH),
        "embeddings.LayerNorm.weight": draw(WIDTH),
        "embeddings.LayerNorm.bias": draw(WIDTH),
    }
    parts = {f"attention.self.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
    parts |= {"attention.output.dense": (WIDTH, WIDTH)}
    parts |= {"intermediate.dense": (INNER, WIDTH), "output.dense": (WIDTH, INNER)}
    for layer in range(LAYERS):
        for part, shape in parts.items():
            made[f"encoder.layer.{layer}.{part}.weight"] = draw(*shape)
            made[f"encoder.layer.{layer}.{part}.bias"] = draw(shape[0])
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            made[f"encoder.layer.{layer}.{norm}.weight"] = draw(WIDTH)
            made[f"encoder.layer.{layer}.{norm}.bias"] = draw(WIDTH)
    return made


def checkpoint(folder: Path) -> Path:
    """A checkpoint in the published layout."""
    (folder / "model.safetensors").write_bytes(save(weights()))
    config = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "lost": 1, "my": 2, "card": 3, "pin": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def checksum(folder: Path) -> str:
    """SHA-256 of the weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
