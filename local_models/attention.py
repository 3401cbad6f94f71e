"""Attention over a pool of key-value slots whose result for a token depends on the token's own past only, bit for bit.

Sums round by how they are grouped, and kernels group by the length of the context and the number of query rows. So both
are made a function of a token's position alone: queries are taken in tiles of one block, and a tile always attends to
whole blocks, up to its own, with what lies beyond each row masked. Fewer than four rows are padded to four, as in
`local_models.linear`. Whether a prompt came in one piece or many, was cached or computed, alone or in company, then
changes nothing.

Masked values are multiplied by zero, so the pool must hold finite numbers everywhere: it begins as zeroed memory, and
the slots of a sequence whose keys are not numbers are zeroed before other sequences get them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from local_models.native import SLOTS, STEP_BYTES
from local_models.shape import Shape

CPU = torch.device("cpu")
_LEAST_ROWS = 4


@dataclass(slots=True)
class Segment:
    """One sequence's rows in the flat batch: `count` tokens from position `start` on, and the blocks they
    live in."""

    row: int
    count: int
    start: int
    blocks: list[int]


@dataclass(slots=True)
class Tile:
    """Rows of one segment within one block of positions; `slots` are those of blocks `first` up to the tile's
    own."""

    rows: slice
    offset: int
    """Position of the first row within its block."""
    count: int
    context: int
    """Slots before and in the tile's block, before a window is cut."""
    slots: slice | Tensor


class KVCache:
    """Keys and values of all sequences: one slot a token, `[layer, key or value, kv head, slot, head]`.

    The system maps zeroed memory when a slot is first touched, so a large pool costs what is used of it. Of eight bits
    (`local_models.native` alone reads those) a slot has a step beside its numbers, and `grain` slots lie interleaved:
    only together can they be copied.
    """

    def __init__(
        self, shape: Shape, blocks: int, block_tokens: int, dtype: torch.dtype, device: torch.device = CPU
    ) -> None:
        self.block_tokens = block_tokens
        self.grain = SLOTS if dtype == torch.int8 else 1
        width = shape.head_dim + (STEP_BYTES if dtype == torch.int8 else 0)
        size = (shape.layers, 2, shape.kv_heads, blocks * block_tokens, width)
        if device.type != "cpu":
            self.tensor = torch.zeros(size, dtype=dtype, device=device)
            return
        bits = {4: np.int32, 2: np.int16, 1: np.int8}[dtype.itemsize]
        self.tensor = torch.from_numpy(np.zeros(size, bits)).view(dtype)

    @property
    def bytes(self) -> int:
        """Size when every slot is in use."""
        return int(self.tensor.numel() * self.tensor.element_size())

    def zero(self, blocks: list[int]) -> None:
        """Set every slot of these blocks to zero."""
        for block in blocks:
            start = block * self.block_tokens
            self.tensor[:, :, :, start : start + self.block_tokens] = 0

    def tiles(self, segment: Segment) -> list[Tile]:
        """The tiles of a segment: it is cut at the borders of blocks."""
        size = self.block_tokens
        tiles = []
        at, end = segment.start, segment.start + segment.count
        while at < end:
            block = at // size
            count = min(end, (block + 1) * size) - at
            row = segment.row + at - segment.start
            slots = self._slots(segment.blocks[: block + 1])
            tiles.append(Tile(slice(row, row + count), at % size, count, (block + 1) * size, slots))
            at += count
        return tiles

    def _slots(self, blocks: list[int]) -> slice | Tensor:
        """Read in place where the blocks lie in a row, gathered otherwise."""
        size, first = self.block_tokens, blocks[0]
        if blocks[-1] - first == len(blocks) - 1 and blocks == list(range(first, first + len(blocks))):
            return slice(first * size, (first + len(blocks)) * size)
        starts = torch.tensor(blocks).unsqueeze(1) * size
        return (starts + torch.arange(size)).flatten().to(self.tensor.device)


@dataclass(slots=True)
class _View:
    """Keys and values that one tile sees under one window, and the mask of its rows.

    Slots that lie in a row are views of the pool, made once for all layers; others are gathered layer by layer, after
    the layer has written its own.
    """

    in_place: tuple[Tensor, ...]
    """`[1, kv head, slot, head]`: keys of layer 0, values of layer 0, keys of layer 1, ..."""
    scattered: Tensor | None
    mask: Tensor

    def layer(self, index: int, pool: KVCache) -> tuple[Tensor, Tensor]:
        """Keys and values `[1, kv head, slot, head]`."""
        if self.scattered is None:
            return self.in_place[2 * index], self.in_place[2 * index + 1]
        keys, values = pool.tensor[index].index_select(2, self.scattered).unsqueeze(1)
        return keys, values


class Attention:
    """The attention of one model; keeps the masks of its windows."""

    def __init__(self, shape: Shape, block_tokens: int, dtype: torch.dtype, device: torch.device = CPU) -> None:
        self._shape = shape
        self._block = block_tokens
        self._group = shape.heads // shape.kv_heads
        blocks = -(-shape.context_tokens // block_tokens)
        self._masks = {
            window: _mask(blocks * block_tokens, block_tokens, window, dtype).to(device)
            for window in set(shape.windows)
        }

    def views(self, tiles: list[Tile], pool: KVCache) -> dict[int, list[_View]]:
        """By window, what each tile sees; made once a step, for all layers."""
        return {window: [self._view(tile, pool, window) for tile in tiles] for window in self._masks}

    def attend(self, layer: int, q: Tensor, pool: KVCache, tiles: list[Tile], views: list[_View]) -> Tensor:
        """Attended values `[rows, heads * head]` of queries `[rows, heads, head]`."""
        shape, group = self._shape, self._group
        packed = q.view(q.shape[0], shape.kv_heads, group, shape.head_dim)
        # Heads that share keys are rows of one product when there is but one token.
        padded = F.pad(packed, (0, 0, 0, _LEAST_ROWS - group)) if group < _LEAST_ROWS else packed
        attended, single = [], []
        for tile, view in zip(tiles, views, strict=True):
            k, v = view.layer(layer, pool)
            if tile.count == 1:
                single.append(F.scaled_dot_product_attention(padded[tile.rows], k, v, attn_mask=view.mask))
                continue
            if single:
                attended.append(self._unpacked(single))
                single = []
            attended.append(self._attend_many(packed[tile.rows], k, v, view.mask))
        if single:
            attended.append(self._unpacked(single))
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def _unpacked(self, single: list[Tensor]) -> Tensor:
        """Rows `[rows, heads * head]` of single tokens' results `[1, kv head, rows, head]`."""
        return torch.cat(single)[:, :, : self._group].reshape(len(single), -1)

    def _attend_many(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Queries `[count, kv head, group, head]` of one tile."""
        count, more = q.shape[0], -q.shape[0] % _LEAST_ROWS
        q = q.permute(1, 2, 0, 3)
        if more:
            q, mask = F.pad(q, (0, 0, 0, more)), F.pad(mask, (0, 0, 0, more))
        size = (-1, self._group, -1, -1)
        y = F.scaled_dot_product_attention(
            q, k.transpose(0, 1).expand(size), v.transpose(0, 1).expand(size), attn_mask=mask
        )
        return y[:, :, :count].permute(2, 0, 1, 3).reshape(count, -1)

    def _view(self, tile: Tile, pool: KVCache, window: int) -> _View:
        """Whole blocks outside the window are cut off."""
        cut = 0
        if window:
            cut = max(0, (tile.context - self._block - window + 1) // self._block * self._block)
        mask = self._masks[window]
        mask = mask[tile.offset : tile.offset + tile.count, mask.shape[1] - tile.context + cut :]
        if not isinstance(tile.slots, slice):
            return _View((), tile.slots[cut:], mask)
        seen = pool.tensor[:, :, None, :, tile.slots.start + cut : tile.slots.stop]
        return _View(seen.flatten(0, 1).unbind(0), None, mask)


def _mask(context: int, block: int, window: int, dtype: torch.dtype) -> Tensor:
    """Additive mask of the last block's rows over a context; a shorter context is a slice of it from the
    right."""
    rows = torch.arange(context - block, context).unsqueeze(1)
    columns = torch.arange(context).unsqueeze(0)
    seen = columns <= rows
    if window:
        seen &= columns > rows - window
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))
