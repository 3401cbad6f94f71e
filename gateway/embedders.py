"""Other embedders than the shipped table, by configuration: a sentence-transformers folder, one that
`python -m cache.minilm_onnx` or `cache.minilm_native` wrote, or an OpenAI-kind endpoint.

Routers trained upon one are served through it, and the semantic cache where `embedding.cache` says so; all others keep
the shipped table. They take milliseconds, so their vectors are made in a thread. Refused: encoders that are no BERT,
and poolings other than the mean; an endpoint serves those.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from cache.minilm import MiniLM, OnnxEmbedder
from cache.minilm_native import NativeEmbedder
from gateway.config import Embedding
from gateway.errors import ConfigError
from gateway.upstream.reach import names_inner
from routers.features import Encoded, Featurizer
from routers.types import Vector


class EmbeddingFailed(Exception):
    """The embedder gave no vector; the route's default answers."""


def open_embedder(config: Embedding) -> Featurizer | None:
    """None: the shipped table alone. Raises ConfigError where the configured one can't be used."""
    if config.kind == "static":
        return None
    return _folder(Path(config.path)) if config.kind == "folder" else _endpoint(config)


def _folder(folder: Path) -> Featurizer:
    try:
        if (folder / "embedder.json").exists():  # written by `python -m cache.minilm_onnx` or `cache.minilm_native`
            made = NativeEmbedder(folder) if (folder / "embedder.so").exists() else OnnxEmbedder.of(folder)
            return Encoded(made, made.dimension, made.id)
        _refuse_foreign(folder)
        encoder = MiniLM(folder, sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError([f"embedding.path: {folder}: {error}"]) from None
    return Encoded(encoder, encoder.dimension, encoder.id)


def _refuse_foreign(folder: Path) -> None:
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
        """A unit vector. Raises EmbeddingFailed."""
        import httpx

        try:
            answer = self._client.post("/embeddings", json={"model": self._model, "input": text or " "})
            answer.raise_for_status()
            told: Any = answer.json()["data"][0]["embedding"]
            vector = np.asarray(told, np.float32)
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise EmbeddingFailed(f"no vector came: {type(error).__name__}") from error
        if vector.shape != (self._dims,) or not np.isfinite(vector).all():
            raise EmbeddingFailed(f"a vector of shape {vector.shape} came, embedding.dims is {self._dims}")
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9), np.float32)
