"""Encoders: vectors equal transformers', whatever the batch, also over HTTP with OpenAI's client."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers

from local_models import shipped_models
from local_models.encoder import Encoder, is_encoder
from local_models.errors import CheckpointError, LocalModelError, PromptTooLong
from local_models.serve import _app
from local_models.served_encoder import ServedEncoder
from tests.local_models.checkpoints import prompts


def write_encoder(folder: Path, **changes: Any) -> Any:
    """Save a random BERT with the shipped models' tokenizer; returns transformers' model."""
    torch.manual_seed(7)
    config = transformers.BertConfig(
        vocab_size=97, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80,
        max_position_embeddings=128, initializer_range=0.2, **changes,
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") or "LayerNorm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shipped_models()["tiny-small"] / name, folder / name)
    return model


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_vectors_equal_transformers(pooling: str, activation: str, tmp_path: Path) -> None:
    """Texts of many lengths are encoded in one batch and compared with the reference one by one."""
    model = write_encoder(tmp_path, hidden_act=activation)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    texts = prompts(12, seed=1, longest=100)
    found = Encoder(tmp_path).embed(texts)
    for ids, vector in zip(texts, found, strict=True):
        with torch.inference_mode():
            hidden = model(torch.tensor([ids])).last_hidden_state[0]
        exact = torch.nn.functional.normalize(hidden[0] if pooling == "cls_token" else hidden.mean(0), dim=0)
        assert torch.allclose(vector, exact, atol=2e-6)


def test_a_vector_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    """Together and alone the vectors are equal bit for bit."""
    write_encoder(tmp_path)
    encoder = Encoder(tmp_path)
    texts = prompts(16, seed=2, longest=60)
    together = encoder.embed(texts)
    assert all(torch.equal(encoder.embed([ids])[0], row) for ids, row in zip(texts, together, strict=True))


def test_invalid_inputs_and_folders_are_refused(tmp_path: Path) -> None:
    """These are a text that is too long, and a folder without weights, with a part of them, or with another pooling."""
    write_encoder(tmp_path)
    with pytest.raises(PromptTooLong, match="129 tokens exceed 128"):
        Encoder(tmp_path).embed([[5] * 129])
    (tmp_path / "1_Pooling").mkdir()
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(CheckpointError, match="pooling_mode_max_tokens"):
        Encoder(tmp_path)
    pooling.unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match=r"lacks 'encoder\.layer\.3"):
        Encoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Encoder(tmp_path)
    assert is_encoder(tmp_path) and not is_encoder(shipped_models()["tiny-small"]) and not is_encoder(tmp_path / "x")


async def test_a_damaged_model_affects_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Requests for it get an error, the log says why, and the server's other models answer. Without any model the
    server doesn't start.
    """
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    for folder in (whole, damaged):
        folder.mkdir()
        write_encoder(folder)
    (damaged / "model.safetensors").write_bytes(b"no weights")
    app: Any = _app({"models": {"bad": str(damaged), "gone": str(tmp_path / "gone"), "good": str(whole)}})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://local") as client:
        answers = {
            name: await client.post("/v1/embeddings", json={"model": name, "input": [[1, 2]]})
            for name in ("good", "bad", "gone")
        }
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["good"]
        assert (await client.get("/healthz")).json()["lost"] == ["bad", "gone"]
    assert answers["good"].status_code == 200
    for name in ("bad", "gone"):
        error = answers[name].json()["error"]
        assert (answers[name].status_code, error["code"]) == (503, "model_not_loaded")
        assert str(tmp_path) not in error["message"]
    assert "the model bad can't be loaded" in caplog.text and "cannot be read" in caplog.text
    with pytest.raises(CheckpointError, match="cannot be read"):
        _app({"models": {"bad": str(damaged)}})


async def test_embeddings_are_served_in_batches(tmp_path: Path) -> None:
    """Forty concurrent requests take a few batches, each gets its own vectors, and requests that an encoder can't serve
    are refused.
    """
    write_encoder(tmp_path)
    app: Any = _app({"models": {"mini": str(tmp_path)}})
    texts = prompts(40, seed=3, longest=30)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://local") as client:

        async def vectors(ids: list[int]) -> list[float]:
            answer = await client.post("/v1/embeddings", json={"model": "mini", "input": [ids, ids[:1]]})
            first, second = answer.json()["data"]
            assert (first["index"], second["index"]) == (0, 1)
            assert answer.json()["usage"]["prompt_tokens"] == len(ids) + 1
            return list(first["embedding"])

        found = await asyncio.gather(*map(vectors, texts))
        exact = Encoder(tmp_path).embed(texts)
        assert torch.allclose(torch.tensor(found), exact, atol=1e-6)
        page = (await client.get("/metrics")).text
        assert 'local_encoder_texts_total{model="mini"} 80' in page
        assert 1 <= app.encoders["mini"].batches < 20
        for body, status in (
            ({"model": "mini", "input": [[1] * 129]}, 400),
            ({"model": "mini", "input": [[96, 97]]}, 400),
            ({"model": "nobody", "input": "x"}, 404),
        ):
            assert (await client.post("/v1/embeddings", json=body)).status_code == status
        chat = {"model": "mini", "messages": [{"role": "user", "content": "x"}]}
        refused = await client.post("/v1/chat/completions", json=chat)
        assert refused.status_code == 400 and "encoder" in refused.json()["error"]["message"]
        assert [card["id"] for card in (await client.get("/v1/models")).json()["data"]] == ["mini"]


async def test_a_vector_with_nan_fails_its_own_request_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests share a batch, and one gets an error."""
    write_encoder(tmp_path)
    served = ServedEncoder("e", tmp_path)
    exact = served.encoder.embed

    def poisoned(texts: list[list[int]]) -> torch.Tensor:
        vectors = exact(texts).clone()
        vectors[[at for at, ids in enumerate(texts) if ids == [9, 9]]] = float("nan")
        return vectors

    monkeypatch.setattr(served.encoder, "embed", poisoned)
    well, sick = await asyncio.gather(served.embed([[5, 6]]), served.embed([[9, 9]]), return_exceptions=True)
    assert isinstance(well, list) and isinstance(sick, LocalModelError)


def test_another_models_tokenizer_is_an_error(tmp_path: Path) -> None:
    """Ids beyond the encoder's vocabulary are reported when it is loaded."""
    write_encoder(tmp_path)
    held = json.loads((tmp_path / "tokenizer.json").read_text())
    held["model"]["vocab"]["zz"] = 4000
    (tmp_path / "tokenizer.json").write_text(json.dumps(held))
    with pytest.raises(CheckpointError, match="ids up to 4000, the model has 97"):
        Encoder(tmp_path)
