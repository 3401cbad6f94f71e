"""A whole forward pass in one call of `native.c`: for small models the way from call to call costs more than the sums.

Holds the addresses of a model's weights as C reads them, and the tensors behind those addresses; the room it computes
in grows to the largest batch it met and is kept. One thread at a time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from local_models.native import Int8Panels, Kernels, Matrix, Panels, Rows
from local_models.shape import Shape

_P, _L, _I, _F = ctypes.c_void_p, ctypes.c_longlong, ctypes.c_int, ctypes.c_float
Product = Panels | Int8Panels


class _Layer(ctypes.Structure):
    _fields_ = (
        ("qkv", Matrix), ("out", Matrix), ("gate_up", Matrix), ("down", Matrix), ("norm_in", _P), ("norm_mlp", _P),
        ("q_norm", _P), ("k_norm", _P), ("window", _L),
    )  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)), ("embedding", _P), ("final_norm", _P), ("cosine", _P), ("sine", _P),
        ("count", _L), ("hidden", _L), ("heads", _L), ("kv_heads", _L), ("d", _L), ("size", _L), ("widest", _L),
        ("eps", _F), ("bf", _I), ("whole", _I),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LayerParts:
    """One layer's products (qkv, out, gate and up, down) and norms (before attention, before the rest)."""

    products: tuple[Product, Product, Product, Product]
    norms: tuple[Tensor, Tensor]
    head_norms: tuple[Tensor, Tensor] | None
    window: int


@dataclass(frozen=True, slots=True)
class Ends:
    """What lies before and behind the layers, and the turns of the positions."""

    embedding: Tensor
    final_norm: Tensor
    cosine: Tensor
    sine: Tensor


class NativePass:
    """The forward pass of one model."""

    def __init__(
        self, kernels: Kernels, shape: Shape, layers: Sequence[LayerParts], ends: Ends, block_tokens: int,
        *, kv_bytes: bool = False,
    ) -> None:  # fmt: skip
        self._forward, self._decode = kernels.library.forward, kernels.library.decode
        self._hidden = shape.hidden
        self._held = layers, ends
        self._dtype = ends.embedding.dtype
        matrices = [[product.matrix() for product in layer.products] for layer in layers]
        sizes = [size for row in matrices for matrix in row for size in (matrix.columns, matrix.k)]
        self._widest = max(sizes, default=shape.hidden)
        self._layers = (_Layer * len(layers))(*map(_layer, matrices, layers))
        self._model = _Model(
            self._layers, ends.embedding.data_ptr(), ends.final_norm.data_ptr(), ends.cosine.data_ptr(),
            ends.sine.data_ptr(), len(layers), shape.hidden, shape.heads, shape.kv_heads, shape.head_dim,
            block_tokens, self._widest, shape.eps, int(self._dtype == torch.bfloat16), int(kv_bytes),
        )  # fmt: skip
        self._room = torch.empty(0, dtype=torch.uint8)
        self._hurry = ctypes.c_int(0)

    def run(self, pool: Tensor, ids: Tensor, positions: Tensor, slots: Tensor, rows: Rows, wanted: Tensor) -> Tensor:
        """Hidden states of the wanted rows; the pool is `[layer, key or value, kv head, slot, d]`, of eight bits where
        so asked."""
        count, answers = len(ids), len(wanted)
        self._make_room(self._needed(count))
        out = torch.empty(answers, self._hidden, dtype=self._dtype)
        self._forward(
            ctypes.addressof(self._model), pool.data_ptr(), pool.shape[3], ids.data_ptr(), positions.data_ptr(),
            slots.data_ptr(), count, len(rows.first), rows.first.data_ptr(), rows.count.data_ptr(),
            rows.start.data_ptr(), rows.table.data_ptr(), rows.blocks.data_ptr(), wanted.data_ptr(), answers,
            out.data_ptr(), self._room.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return out

    def decode(
        self, head: Product, pool: Tensor, ids: Tensor, rows: Rows, left: Sequence[int], ends: Sequence[int]
    ) -> list[list[int]]:
        """The likeliest tokens more of each sequence whose `ids` come next, at most so many as it has `left`, which
        never grows from one to the next; -1 where the scores are no numbers. The last step is the first in which one
        of `ends` or -1 was said, or `hurry` called."""
        count, matrix = len(ids), head.matrix()
        elements = count * (self._hidden + matrix.columns) * self._dtype.itemsize
        self._make_room(32 * count + elements + self._needed(count))
        said, stops = torch.empty(left[0], count, dtype=torch.long), torch.tensor(ends, dtype=torch.long)
        most = torch.tensor(left, dtype=torch.long)
        made = self._decode(
            ctypes.addressof(self._model), ctypes.addressof(matrix), pool.data_ptr(), pool.shape[3], ids.data_ptr(),
            count, rows.first.data_ptr(), rows.count.data_ptr(), rows.start.data_ptr(), rows.table.data_ptr(),
            rows.blocks.data_ptr(), most.data_ptr(), stops.data_ptr(), len(ends), said.data_ptr(),
            ctypes.addressof(self._hurry), self._room.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        self._hurry.value = 0
        tokens: list[list[int]] = said[:made].T.tolist()
        return [row[:many] for row, many in zip(tokens, left, strict=True)]

    def hurry(self) -> None:
        """End `decode` with the step it is in, or the next call with its first; from any thread."""
        self._hurry.value = 1

    def _needed(self, count: int) -> int:
        """Bytes that a pass over so many rows computes in."""
        elements: int = count * (self._hidden + 2 * self._widest) * self._dtype.itemsize
        return elements + 4 * count * (self._widest + 2)

    def _make_room(self, needed: int) -> None:
        if len(self._room) < needed:
            self._room = torch.empty(needed, dtype=torch.uint8)


def _layer(matrices: list[Matrix], parts: LayerParts) -> _Layer:
    q_norm, k_norm = (norm.data_ptr() for norm in parts.head_norms) if parts.head_norms else (None, None)
    norm_in, norm_mlp = (norm.data_ptr() for norm in parts.norms)
    return _Layer(*matrices, norm_in, norm_mlp, q_norm, k_norm, parts.window)
