"""The forward pass of the Llama, Qwen2, Qwen3 and Mistral families over a pool of key-value slots.

A step's tokens, chunks of prompts and single decoded tokens alike, lie in one flat batch: every matrix
product sees all of them at once, and only attention looks at one sequence at a time, through a view of its
own slots. So nothing is padded, and a row's result is computed the same way whoever shares the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from local_models.attention import Attention, Pool, Segment
from local_models.checkpoint import load_tensors
from local_models.linear import Dense, Linear
from local_models.shape import Shape, read_shape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.bfloat16}


@dataclass(slots=True)
class Batch:
    """The tokens of one step: ids, positions and slots to write, flat; and the rows whose logits are
    wanted."""

    ids: Tensor
    positions: Tensor
    write_slots: Tensor
    segments: list[Segment]
    wanted_rows: Tensor


@dataclass(slots=True)
class _Layer:
    norm_in: Tensor
    qkv: Linear
    out: Linear
    norm_mlp: Tensor
    gate_up: Linear
    down: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    window: int


class Decoder:
    """The weights of one model and its forward pass."""

    def __init__(self, shape: Shape, tensors: dict[str, Tensor], block_tokens: int = 64) -> None:
        self.shape = shape
        self.block_tokens = block_tokens
        self.dtype = tensors["model.embed_tokens.weight"].dtype
        self.device = tensors["model.embed_tokens.weight"].device
        self.embedding = tensors["model.embed_tokens.weight"]
        self.final_norm = tensors["model.norm.weight"]
        self.head: Linear = Dense(self.embedding if shape.tied else tensors["lm_head.weight"])
        self.layers = [_layer(shape, tensors, index) for index in range(shape.layers)]
        self._attention = Attention(shape, block_tokens, self.dtype)
        angles = torch.outer(
            torch.arange(shape.context_tokens).float(), torch.tensor(shape.inverse_frequencies).float()
        )
        angles = torch.cat([angles, angles], -1)
        self._cos = (angles.cos() * shape.rope_gain).to(self.device, self.dtype)
        self._sin = (angles.sin() * shape.rope_gain).to(self.device, self.dtype)

    @classmethod
    def load(cls, folder: Path, dtype: str = "auto", block_tokens: int = 64) -> Decoder:
        """The model in a Hugging Face folder; `auto` keeps the folder's own number format."""
        shape = read_shape(folder)
        number = DTYPES[shape.dtype if dtype == "auto" else dtype]
        return cls(shape, load_tensors(folder, shape, number), block_tokens)

    def new_pool(self, blocks: int) -> Pool:
        """A zeroed pool for this model's keys and values."""
        return Pool(self.shape, blocks, self.block_tokens, self.dtype)

    def forward(self, batch: Batch, pool: Pool) -> Tensor:
        """Hidden states after the last norm of the wanted rows; writes the batch's keys and values."""
        with torch.inference_mode():
            return self._forward(batch, pool)

    def _forward(self, batch: Batch, pool: Pool) -> Tensor:
        x = F.embedding(batch.ids, self.embedding)
        cos, sin = self._cos[batch.positions].unsqueeze(1), self._sin[batch.positions].unsqueeze(1)
        tiles = [tile for segment in batch.segments for tile in pool.tiles(segment)]
        views = self._attention.views(tiles, pool)
        for index, layer in enumerate(self.layers):
            q, k, v = self._project(layer, x, cos, sin)
            keys, values = pool.tensor[index]
            keys.index_copy_(1, batch.write_slots, k.transpose(0, 1))
            values.index_copy_(1, batch.write_slots, v.transpose(0, 1))
            attended = self._attention.attend(index, q, pool, tiles, views[layer.window])
            x = x + layer.out(attended)
            gate, up = layer.gate_up(self._norm(x, layer.norm_mlp)).chunk(2, -1)
            x = x + layer.down(F.silu(gate) * up)
        return self._norm(x.index_select(0, batch.wanted_rows), self.final_norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 scores over the vocabulary."""
        with torch.inference_mode():
            return self.head(hidden).float()

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.shape.eps)

    def _project(self, layer: _Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = self.shape
        qkv = layer.qkv(self._norm(x, layer.norm_in)).view(x.shape[0], -1, shape.head_dim)
        q, k, v = qkv.split([shape.heads, shape.kv_heads, shape.kv_heads], 1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def _layer(shape: Shape, tensors: dict[str, Tensor], index: int) -> _Layer:
    name = f"model.layers.{index}."
    return _Layer(
        norm_in=tensors[name + "input_layernorm.weight"],
        qkv=_fused(tensors, [f"{name}self_attn.{part}_proj" for part in "qkv"]),
        out=_fused(tensors, [name + "self_attn.o_proj"]),
        norm_mlp=tensors[name + "post_attention_layernorm.weight"],
        gate_up=_fused(tensors, [name + "mlp.gate_proj", name + "mlp.up_proj"]),
        down=_fused(tensors, [name + "mlp.down_proj"]),
        q_norm=tensors.get(name + "self_attn.q_norm.weight"),
        k_norm=tensors.get(name + "self_attn.k_norm.weight"),
        window=shape.windows[index],
    )


def _fused(tensors: dict[str, Tensor], names: list[str]) -> Dense:
    """One product for several; the parts leave `tensors`, so that no weight is held twice."""
    weight = torch.cat([tensors.pop(name + ".weight") for name in names])
    biases = [tensors.pop(name + ".bias") for name in names if name + ".bias" in tensors]
    return Dense(weight, torch.cat(biases) if biases else None)
