"""The forward pass of the Llama, Qwen2, Qwen3 and Mistral families over a pool of key-value slots.

A step's tokens, chunks of prompts and single decoded tokens alike, lie in one flat batch: every matrix
product sees all of them at once, and only attention looks at one sequence at a time, through a view of its
own slots. A row's result is computed the same way whoever shares the batch: by `local_models.native` where it can be
had, else by torch, on a GPU with Triton's products (`local_models.grouped`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from local_models.attention import Attention, KVCache, Segment
from local_models.errors import CheckpointError
from local_models.linear import Linear, least_rows
from local_models.native import Int8Panels, Panels, Rows, kernels
from local_models.native_pass import Ends, LayerParts, NativePass
from local_models.products import LinearFactory, fused_linear, head_linear
from local_models.quant import Weight, load_weights
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

    def on(self, device: torch.device) -> Batch:
        """The batch with its numbers on the device that computes with them."""
        if self.ids.device == device:
            return self
        ids, positions, slots, wanted = (
            held.to(device) for held in (self.ids, self.positions, self.write_slots, self.wanted_rows)
        )
        return Batch(ids, positions, slots, self.segments, wanted)


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

    @property
    def norms(self) -> tuple[Tensor, Tensor] | None:
        return (self.q_norm, self.k_norm) if self.q_norm is not None and self.k_norm is not None else None

    @property
    def parts(self) -> LayerParts:
        """The layer as `local_models.native_pass` takes it."""
        products = [linear for linear in self.linears if isinstance(linear, Panels | Int8Panels)]
        qkv, out, gate_up, down = products
        return LayerParts((qkv, out, gate_up, down), (self.norm_in, self.norm_mlp), self.norms, self.window)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.qkv, self.out, self.gate_up, self.down


class Decoder:
    """The weights of one model and its forward pass."""

    def __init__(
        self,
        shape: Shape,
        weights: dict[str, Weight],
        block_tokens: int = 64,
        *,
        int8: bool = False,
        invariant: bool = True,
        native: bool = True,
        paged: bool | None = None,
    ) -> None:
        """`paged`: as on a GPU, products of weights by Triton and single tokens over the pool in place; None: where
        the weights are on one."""
        self.shape = shape
        self.block_tokens = block_tokens
        self.embedding = _tensor(weights, "model.embed_tokens.weight")
        self.dtype = self.embedding.dtype
        self.device = self.embedding.device
        self.final_norm = _tensor(weights, "model.norm.weight")
        self.paged = self.device.type != "cpu" if paged is None else paged
        found = kernels() if native and not self.paged else None
        takes = found is not None and found.takes(self.dtype, shape.head_dim, block_tokens)
        factory = LinearFactory(self.dtype, int8, found if takes else None, self.paged, invariant)
        self.head = head_linear(weights, factory)
        self.layers = [_layer(shape, weights, index, factory) for index in range(shape.layers)]
        angles = torch.outer(
            torch.arange(shape.context_tokens).float(), torch.tensor(shape.inverse_frequencies).float()
        )
        self._cos = torch.cat([angles.cos(), angles.cos()], -1).to(self.device, self.dtype)
        self._sin = torch.cat([-angles.sin(), angles.sin()], -1).to(self.device, self.dtype)
        ends = Ends(self.embedding, self.final_norm, self._cos, self._sin)
        parts = [layer.parts for layer in self.layers] if takes else []
        whole = bool(parts) and all(isinstance(product, Int8Panels) for part in parts for product in part.products)
        kv_bytes = whole and found is not None and found.takes_bytes(shape.head_dim, block_tokens)
        self.kv_dtype = torch.int8 if kv_bytes else self.dtype
        self._native = None
        if found and takes:
            self._native = NativePass(found, shape, parts, ends, block_tokens, kv_bytes=kv_bytes)
        self._attention = None if self._native else Attention(shape, block_tokens, self.dtype, self.device)
        self._least_rows = 1 if self.paged or not invariant else least_rows(self.dtype)

    @property
    def is_native(self) -> bool:
        """Whether `local_models.native` computes this model."""
        return self._native is not None

    @classmethod
    def load(
        cls, folder: Path, dtype: str = "auto", block_tokens: int = 64, *,
        int8: bool = False, invariant: bool = True, native: bool = True, device: str = "cpu", paged: bool | None = None,
    ) -> Decoder:  # fmt: skip
        """The model in a Hugging Face folder; `auto` keeps the folder's own number format.

        `int8` quantizes the matrices while loading; a folder that is quantized needs no word. Without
        `invariant` torch computes a lone float32 stream faster, and its last bits may depend on how many others
        run; `native` products need no such choice.
        """
        shape = read_shape(folder)
        number = DTYPES.get(shape.dtype if dtype == "auto" else dtype, torch.float32)
        try:
            weights = load_weights(folder, shape, number, device)
            return cls(shape, weights, block_tokens, int8=int8, invariant=invariant, native=native, paged=paged)
        except torch.OutOfMemoryError as error:
            raise CheckpointError(f"{folder} does not fit {device}: {error}") from error

    def new_pool(self, blocks: int) -> KVCache:
        """A zeroed pool for this model's keys and values."""
        return KVCache(self.shape, blocks, self.block_tokens, self.kv_dtype, self.device)

    def forward(self, batch: Batch, pool: KVCache) -> Tensor:
        """Hidden states after the last norm of the wanted rows; writes the batch's keys and values."""
        with torch.inference_mode():
            if self._native is None:
                return self._forward(batch.on(self.device), pool)
            rows = _rows(batch.segments)
            return self._native.run(pool.tensor, batch.ids, batch.positions, batch.write_slots, rows, batch.wanted_rows)

    def decode(self, segments: list[Segment], ids: list[int], pool: KVCache, left: list[int]) -> list[list[int]]:
        """The likeliest tokens more of each sequence whose next tokens are `ids`; only where `is_native`. See
        `NativePass.decode`."""
        assert self._native is not None and isinstance(self.head, Panels | Int8Panels)
        next_ids = torch.tensor(ids, dtype=torch.long)
        ends = sorted(self.shape.end_ids)
        return self._native.decode(self.head, pool.tensor, next_ids, _rows(segments), left, ends)

    def hurry(self) -> None:
        """See `NativePass.hurry`; nothing where each call is one step anyway."""
        if self._native is not None:
            self._native.hurry()

    def _forward(self, batch: Batch, pool: KVCache) -> Tensor:
        count = len(batch.ids)
        # Rows that a product needs to be the same whatever their number are added once, not in every product.
        more = max(0, self._least_rows - count)
        ids, positions = F.pad(batch.ids, (0, more)), F.pad(batch.positions, (0, more))
        tiles = [tile for segment in batch.segments for tile in pool.tiles(segment)]
        attention = self._attention
        assert attention is not None
        views = attention.views(tiles, pool)

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = pool.tensor[index]
            keys.index_copy_(1, batch.write_slots, k[:count].transpose(0, 1))
            values.index_copy_(1, batch.write_slots, v[:count].transpose(0, 1))
            attended = attention.attend(index, q, pool, tiles, views[self.layers[index].window])
            return F.pad(attended, (0, 0, 0, more)) if more else attended

        x = self.passed(ids, positions, attend)
        return self.finished(x.index_select(0, batch.wanted_rows))

    def passed(self, ids: Tensor, positions: Tensor, attend: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Rows after the last layer, by torch; `attend(layer, q, k, v)` keeps keys and values and gives
        `[rows, heads * d]`."""
        x = F.embedding(ids, self.embedding)
        cos, sin = self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)
        for index, layer in enumerate(self.layers):
            x = x + layer.out(attend(index, *self._project(layer, x, cos, sin)))
            gate, up = layer.gate_up(self._norm(x, layer.norm_mlp)).chunk(2, -1)
            x = x + layer.down(F.silu(gate).mul_(up))
        return x

    def finished(self, x: Tensor) -> Tensor:
        """The rows after the last norm."""
        return self._norm(x, self.final_norm)

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
        turned = _rotate(qkv[:, : shape.heads + shape.kv_heads], cos, sin)
        return turned[:, : shape.heads], turned[:, shape.heads :], v


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions; the halves change places and `sin` carries the sign of the first."""
    swapped = x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return torch.addcmul(x * cos, swapped, sin)


def _rows(segments: list[Segment]) -> Rows:
    """The segments as plain arrays."""
    at, table, blocks = 0, [], list[int]()
    for segment in segments:
        table.append(at)
        needed = segment.blocks
        blocks += needed
        at += len(needed)
    lists = [s.row for s in segments], [s.count for s in segments], [s.start for s in segments], table, blocks
    first, count, start, begin, every = (torch.tensor(values, dtype=torch.int32) for values in lists)
    return Rows(first, count, start, begin, every)


def _layer(shape: Shape, weights: dict[str, Weight], index: int, factory: LinearFactory) -> _Layer:
    name = f"model.layers.{index}."

    def linear(*parts: str) -> Linear:
        return fused_linear(weights, [name + part for part in parts], factory)

    return _Layer(
        norm_in=_tensor(weights, name + "input_layernorm.weight"),
        qkv=linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out=linear("self_attn.o_proj"),
        norm_mlp=_tensor(weights, name + "post_attention_layernorm.weight"),
        gate_up=linear("mlp.gate_proj", "mlp.up_proj"),
        down=linear("mlp.down_proj"),
        q_norm=_tensor(weights, name + "self_attn.q_norm.weight") if shape.qk_norm else None,
        k_norm=_tensor(weights, name + "self_attn.k_norm.weight") if shape.qk_norm else None,
        window=shape.windows[index],
    )


def _tensor(weights: dict[str, Weight], name: str) -> Tensor:
    weight = weights[name]
    assert isinstance(weight, Tensor), f"{name} is never quantized"
    return weight
