"""Embedders that the configuration may name in place of the shipped table: a sentence-transformers folder, a folder
that `python -m cache.minilm_onnx` or `cache.minilm_native` wrote, or an endpoint of OpenAI's kind.

Routers that were trained with such an embedder use it, and so does the semantic cache if `embedding.cache` is true; all
others keep the shipped table. A vector takes milliseconds, so it is computed in a thread. Folders with encoders other
than BERT, or pooling other than the mean, are refused; those models need an endpoint.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from cache.minilm import MiniLM, OnnxEmbedder
from cache.minilm_native import NativeEmbedder
from gateway.config.types import Embedding
from gateway.errors import ConfigError
from gateway.upstream.reach import names_inner
from routers.features import Encoded, Featurizer
from routers.types import Vector


class EmbeddingFailed(Exception):
    """The embedder gave no vector."""


def open_embedder(config: Embedding) -> Featurizer | None:
    """The configured embedder; None for the shipped table. Raises ConfigError if its folder can't be used."""
    if config.kind == "static":
        return None
    return _folder(Path(config.path)) if config.kind == "folder" else _endpoint(config)


def _folder(folder: Path) -> Featurizer:
    try:
        if (folder / "embedder.json").exists():  # written by `python -m cache.minilm_onnx` or `cache.minilm_native`
            compiled = NativeEmbedder(folder) if (folder / "embedder.so").exists() else OnnxEmbedder.of(folder)
            return Encoded(compiled, compiled.dimension, compiled.id)
        _check_supported(folder)
        encoder = MiniLM(folder, sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError([f"embedding.path: {folder}: {error}"]) from None
    return Encoded(encoder, encoder.dimension, encoder.id)


def _check_supported(folder: Path) -> None:
    """Raises ValueError for an encoder that isn't a BERT with mean pooling."""
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "bert":
        raise ValueError(f"model_type is {config.get('model_type')!r}, only 'bert' can be read")
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.exists() and not json.loads(pooling.read_text()).get("pooling_mode_mean_tokens"):
        raise ValueError("its pooling is not the mean of the tokens")


def _endpoint(config: Embedding) -> Featurizer:
    name = hashlib.sha256(f"{config.base_url} {config.model}".encode()).hexdigest()[:12]
    return Encoded(Endpoint(config), config.dims, f"{config.model}@{name}")


class Endpoint:
    """`POST {base_url}/embeddings`, one text at a time, from any thread."""

    def __init__(self, config: Embedding) -> None:
        import httpx

        from gateway.upstream.checked import checked

        headers = {"authorization": f"Bearer {config.api_key}"} if config.api_key else {}
        url = httpx.URL(config.base_url.rstrip("/"))
        hooks = checked(inner=config.private_network or names_inner(url.host))
        self._client = httpx.Client(
            base_url=url, headers=headers, timeout=config.timeout_s, transport=httpx.HTTPTransport(), event_hooks=hooks
        )
        self._model, self._dims = config.model, config.dims

    def __call__(self, text: str) -> Vector:
        """The text's unit vector. Raises EmbeddingFailed."""
        import httpx

        try:
            answer = self._client.post("/embeddings", json={"model": self._model, "input": text or " "})
            answer.raise_for_status()
            embedding: Any = answer.json()["data"][0]["embedding"]
            vector = np.asarray(embedding, np.float32)
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise EmbeddingFailed(f"the embedding endpoint gave no vector: {type(error).__name__}") from error
        if vector.shape != (self._dims,) or not np.isfinite(vector).all():
            raise EmbeddingFailed(
                f"the embedding endpoint gave a vector of shape {vector.shape}, embedding.dims is {self._dims}"
            )
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9), np.float32)
