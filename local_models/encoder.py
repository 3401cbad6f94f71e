"""Sentence encoders of the BERT family (MiniLM and its like): texts in, vectors of length 1 out, many at a time.

All texts of a batch lie in one flat run of rows without padding; only attention looks at one text at a time. So a
text's vector does not depend on the rest of its batch; where `local_models.native` computes, not even in the last bit.

Reads a Hugging Face folder (config.json, model.safetensors, tokenizer.json), and from sentence-transformers' files
beside it how the rows of a text become one vector: their mean, or the first. Refuses other architectures and texts
longer than the model's positions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from local_models.checkpoint import require_manifest
from local_models.errors import CheckpointError, PromptTooLong
from local_models.linear import Linear
from local_models.native import kernels
from local_models.products import LinearFactory
from local_models.text import TextCodec

ARCHITECTURES = ("BertModel",)
_ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: Linear
    out: Linear
    out_norm: tuple[Tensor, Tensor]
    up: Linear
    down: Linear
    norm: tuple[Tensor, Tensor]


def is_encoder(folder: Path) -> bool:
    """Whether a folder's config names an encoder."""
    try:
        architectures = json.loads((folder / "config.json").read_text()).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return False  # the decoder's loader says what is wrong with it
    return any(name in ARCHITECTURES for name in architectures)


class Encoder:
    """One model: `embed` gives vectors."""

    def __init__(self, folder: Path) -> None:
        require_manifest(folder)
        self.codec = TextCodec(folder)
        self.codec.tokenizer.no_padding()
        self.codec.tokenizer.no_truncation()
        config = json.loads((folder / "config.json").read_text())
        try:
            self._read(config, _weights(folder))
        except KeyError as error:
            raise CheckpointError(f"{folder} lacks {error}") from error
        self.codec.require_match(len(self._words), ())
        self._first_row = _takes_first_row(folder)

    def _read(self, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        self.heads, self.eps = config["num_attention_heads"], config.get("layer_norm_eps", 1e-12)
        self.most_tokens, self.size = config["max_position_embeddings"], config["hidden_size"]
        if config.get("hidden_act", "gelu") not in _ACTIVATIONS:
            raise CheckpointError(f"activation {config['hidden_act']!r} is not computed here")
        self._gelu = _ACTIVATIONS[config.get("hidden_act", "gelu")]
        self._words = weights["embeddings.word_embeddings.weight"]
        # Every text is one segment, so its type is added to the positions once.
        types = weights["embeddings.token_type_embeddings.weight"]
        self._places = weights["embeddings.position_embeddings.weight"] + types[0]
        self._norm = _pair(weights, "embeddings.LayerNorm")
        factory = LinearFactory(torch.float32, native=kernels())
        self._layers = [_layer(weights, f"encoder.layer.{at}.", factory) for at in range(config["num_hidden_layers"])]

    def embed(self, texts: Ids[Ids[int]]) -> Tensor:
        """`[texts, size]`, each row of length 1; raises `PromptTooLong`."""
        longest = max(map(len, texts), default=0)
        if longest > self.most_tokens:
            raise PromptTooLong(f"{longest} tokens exceed {self.most_tokens}", param="input")
        with torch.inference_mode():
            return self._embed(texts)

    def _embed(self, texts: Ids[Ids[int]]) -> Tensor:
        lengths = [len(ids) for ids in texts]
        ids = torch.tensor([token for ids in texts for token in ids])
        positions = torch.cat([torch.arange(length) for length in lengths])
        x = self._normed(self._words[ids] + self._places[positions], self._norm)
        for layer in self._layers:
            x = self._normed(x + layer.out(self._attend(layer.qkv(x), lengths)), layer.out_norm)
            x = self._normed(x + layer.down(F.gelu(layer.up(x), approximate=self._gelu)), layer.norm)
        rows = [part[0] if self._first_row else part.mean(0) for part in x.split(lengths)]
        return F.normalize(torch.stack(rows), dim=-1)

    def _attend(self, qkv: Tensor, lengths: list[int]) -> Tensor:
        attended = []
        for part in qkv.split(lengths):
            q, k, v = part.view(len(part), 3, self.heads, -1).permute(1, 2, 0, 3).unsqueeze(1)
            y = F.scaled_dot_product_attention(q, k, v)
            attended.append(y[0].transpose(0, 1).reshape(len(part), -1))
        return torch.cat(attended)

    def _normed(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, (self.size,), *norm, self.eps)


def _weights(folder: Path) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no model.safetensors")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return {name.removeprefix("bert."): tensor.float() for name, tensor in tensors.items()}


def _takes_first_row(folder: Path) -> bool:
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return False
    modes = {
        name for name, on in json.loads(path.read_text()).items() if name.startswith("pooling_mode") and on is True
    }
    if modes not in ({"pooling_mode_mean_tokens"}, {"pooling_mode_cls_token"}):
        raise CheckpointError(f"{path}: {', '.join(sorted(modes))} is not computed here")
    return "pooling_mode_cls_token" in modes


def _pair(weights: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[name + ".weight"], weights[name + ".bias"]


def _layer(weights: dict[str, Tensor], name: str, factory: LinearFactory) -> _Layer:
    def linear(*parts: str) -> Linear:
        pairs = [_pair(weights, name + part) for part in parts]
        return factory.dense(torch.cat([weight for weight, _ in pairs]), torch.cat([bias for _, bias in pairs]))

    return _Layer(
        qkv=linear("attention.self.query", "attention.self.key", "attention.self.value"),
        out=linear("attention.output.dense"),
        out_norm=_pair(weights, name + "attention.output.LayerNorm"),
        up=linear("intermediate.dense"),
        down=linear("output.dense"),
        norm=_pair(weights, name + "output.LayerNorm"),
    )
