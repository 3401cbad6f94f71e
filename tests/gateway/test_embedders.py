"""Configured embedders: a sentence-transformers folder, and an endpoint of OpenAI's kind."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from gateway.config.types import Embedding
from gateway.embedders import EmbeddingFailed, open_embedder
from gateway.errors import ConfigError
from gateway.providers.scripted import ScriptedServer
from gateway.providers.scripted_openai import DIMENSIONS
from routers.artifact import Card
from routers.estimators.base import Training
from routers.estimators.linear import Linear
from routers.features import STRUCTURE, Featurizer, shipped_featurizer
from routers.plugin import Learned, PluginRouter
from routers.projection import Projection
from routers.registry import save_router
from tests.live import live

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "write", "a", "poem", "about", "the", "sea", "solve", "sum", "of", "two"]
WIDTH = 8


def encoder(folder: Path, *, model_type: str = "bert", mean: bool = True) -> Path:
    """A tiny BERT with random weights in a sentence-transformers folder."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": mean}))
    shape = {
        "hidden_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": 1, "model_type": model_type,
        "intermediate_size": 16, "vocab_size": len(WORDS), "max_position_embeddings": 256,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(shape))
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    at = "encoder.layer.0."
    weights = {
        "embeddings.word_embeddings.weight": rng.normal(size=(len(WORDS), WIDTH)),
        "embeddings.position_embeddings.weight": rng.normal(size=(256, WIDTH)) * 0.1,
        "embeddings.token_type_embeddings.weight": np.zeros((2, WIDTH)),
    }
    for name in ("embeddings.LayerNorm", f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"):
        weights |= {f"{name}.weight": np.ones(WIDTH), f"{name}.bias": np.zeros(WIDTH)}
    for name, (out, into) in {
        "attention.self.query": (WIDTH, WIDTH), "attention.self.key": (WIDTH, WIDTH),
        "attention.self.value": (WIDTH, WIDTH), "attention.output.dense": (WIDTH, WIDTH),
        "intermediate.dense": (16, WIDTH), "output.dense": (WIDTH, 16),
    }.items():  # fmt: skip
        weights |= {f"{at}{name}.weight": rng.normal(size=(out, into)) * 0.3, f"{at}{name}.bias": np.zeros(out)}
    save_file({name: value.astype(np.float32) for name, value in weights.items()}, folder / "model.safetensors")
    return folder


def router(path: Path, featurizer: Featurizer) -> None:
    """A router trained with that embedder: the small model is right on poems, the large one on sums."""
    texts = [("write a poem about the sea", "solve the sum of two")[i % 2] + " the" * (i % 5) for i in range(60)]
    x = np.stack([featurizer.describe(text).vector for text in texts]).astype(np.float64)
    projection = Projection().fit(x, featurizer.layout.blocks())
    scores = np.array([[1.0, 0.4] if i % 2 == 0 else [0.0, 1.0] for i in range(60)])
    quality = Linear(ridge=1.0).fit(Training(projection.apply(x).astype(float), scores, [""] * 60, ("small", "large")))
    learned = Learned(("small", "large"), projection, quality)
    made = PluginRouter("linear", "1", featurizer.version, learned)
    save_router(path, made, Card("linear", "1", featurizer.version, ("small", "large")))


async def answered_by(client: httpx.AsyncClient, url: str, text: str) -> str:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    answer = await client.post(f"{url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-headgate-model"]


async def test_a_router_trained_upon_a_folder_is_served_through_it(tmp_path: Path) -> None:
    """Its artefact is served with the embedder it was trained with. Without that [embedding] the router is undecided
    and the default model answers.
    """
    folder = encoder(tmp_path / "encoder")
    featurizer = open_embedder(Embedding(kind="folder", path=str(folder)))
    assert featurizer is not None and featurizer.dims == WIDTH + STRUCTURE
    router(tmp_path / "r.safetensors", featurizer)
    routes = [
        {"name": "auto", "models": ["small", "large"], "router": str(tmp_path / "r.safetensors"), "cost_weight": 0.0},
    ]
    for embedding, poem, ready in (({"kind": "folder", "path": str(folder)}, "small", 200), ({}, "large", 503)):
        async with (
            live(tmp_path, models=["small", "large"], routes=routes, embedding=embedding) as gateway,
            httpx.AsyncClient() as client,
        ):
            assert await answered_by(client, gateway.url, "write a poem about the sea") == poem
            assert await answered_by(client, gateway.url, "solve the sum of two") == "large"
            assert (await client.get(f"{gateway.url}/readyz")).status_code == ready


async def test_an_endpoint_gives_vectors() -> None:
    """The endpoint's vectors become unit vectors, with the similarities that it means."""
    async with ScriptedServer() as upstream:
        stated = Embedding(kind="openai", base_url=upstream.url, model="text", dims=DIMENSIONS, timeout_s=5.0)
        featurizer = open_embedder(stated)
        assert featurizer is not None
        texts = ("the sea and the moon", "the moon and the sea again", "solve two sums")
        one, near, far = [await asyncio.to_thread(featurizer.embed, text) for text in texts]
        assert np.linalg.norm(one) == pytest.approx(1.0, abs=1e-5)
        assert one @ near > one @ far
        assert featurizer.version.startswith("encoder:text@")


@pytest.mark.parametrize("fault", [{"model": "bad"}, {"dims": 5}])
async def test_an_endpoint_that_gives_no_vector_says_so(fault: dict[str, object]) -> None:
    """An error, or a vector of another length than configured, raises EmbeddingFailed."""
    async with ScriptedServer({"bad": [{"status": 500}]}) as upstream:
        stated = {"kind": "openai", "base_url": upstream.url, "model": "text", "dims": DIMENSIONS, **fault}
        featurizer = open_embedder(msgspec.convert(stated, Embedding))
        assert featurizer is not None
        with pytest.raises(EmbeddingFailed):
            await asyncio.to_thread(featurizer.embed, "hello")


@pytest.mark.parametrize("how", [{"model_type": "mpnet"}, {"mean": False}])
def test_an_encoder_that_cannot_be_read_is_refused(tmp_path: Path, how: dict[str, object]) -> None:
    """Another architecture or pooling would give meaningless vectors."""
    folder = encoder(tmp_path / "e", **how)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"embedding\.path"):
        open_embedder(Embedding(kind="folder", path=str(folder)))


def test_nothing_configured_is_the_shipped_table() -> None:
    """No embedder is opened, and versions never mix."""
    assert open_embedder(Embedding()) is None
    assert not shipped_featurizer().version.startswith("encoder:")
