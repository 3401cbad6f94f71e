"""Decoding on a GPU: attention that reads the paged pool in place, and steps captured once as CUDA graphs.

`attend_paged` is split over parts of the context that begin at fixed positions, so what a row gets depends on its own
sequence only; the parts are joined in order. `DecodeSteps` runs one token of every sequence in buffers of fixed shape:
on a GPU each shape is captured at its first use and replayed from then on, which takes the launches out of a step;
elsewhere the same buffers are computed as they are. No figure of speed is claimed here: that takes a GPU. Without one
both are computed by Triton's interpreter, and the kernel is compiled for sm_90.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from local_models.decoder import Decoder

PART_BLOCKS = 4
"""Blocks of the pool that one program walks."""
_LEAST_HEADS = 16
"""The least rows a tensor core takes: heads that share keys are padded to so many."""


@triton.jit  # type: ignore[untyped-decorator]
def _paged(  # type: ignore[no-untyped-def]
    q, keys, values, table, lengths, sums, tops, totals, scale, slots, table_width, parts,
    GROUP: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr,
    PART: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """One program: the heads that share one key head, over `PART` blocks of one sequence."""
    sequence, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads = tl.num_programs(1)
    length = tl.load(lengths + sequence)
    mine, at, slot = tl.arange(0, HEADS), tl.arange(0, WIDTH), tl.arange(0, SIZE)
    row = (sequence * kv_heads + head) * GROUP + mine
    real = (mine < GROUP)[:, None] & (at < D)[None, :]
    query = tl.load(q + row[:, None] * D + at[None, :], mask=real, other=0.0)
    top = tl.full((HEADS,), -1e30, tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    sum_ = tl.zeros((HEADS, WIDTH), tl.float32)
    for step in range(PART):
        number = part * PART + step
        position = number * SIZE + slot
        seen = position < length
        if WINDOW > 0:
            seen = seen & (position >= length - WINDOW)
        held = seen[:, None] & (at < D)[None, :]
        block = tl.load(table + sequence * table_width + number, mask=number * SIZE < length, other=0)
        where = (head * slots + block * SIZE + slot)[:, None].to(tl.int64) * D + at[None, :]
        key = tl.load(keys + where, mask=held, other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(seen[None, :], score, -1e30)
        next_ = tl.maximum(top, tl.max(score, 1))
        weight = tl.where(seen[None, :], tl.exp(score - next_[:, None]), 0.0)
        keep = tl.exp(top - next_)
        value = tl.load(values + where, mask=held, other=0.0)
        sum_ = tl.dot(weight.to(value.dtype), value, sum_ * keep[:, None], input_precision="ieee")
        total = total * keep + tl.sum(weight, 1)
        top = next_
    out = row * parts + part
    tl.store(tops + out, top, mask=mine < GROUP)
    tl.store(totals + out, total, mask=mine < GROUP)
    tl.store(sums + out[:, None] * D + at[None, :], sum_, mask=real)


def attend_paged(
    q: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, block_tokens: int, window: int = 0
) -> Tensor:
    """Attended values `[rows, heads, d]` of one query a sequence `[rows, heads, d]`; keys and values are one layer's
    `[kv head, slot, d]`, `table` `[rows, blocks]` the blocks of each sequence, `lengths` the tokens before and with
    the query's, of which it sees the last `window`; 0: all. Blocks are a power of two of at least 16."""
    rows, heads, d = q.shape
    kv_heads, slots, _ = keys.shape
    group, width = heads // kv_heads, table.shape[1]
    parts = -(-width // PART_BLOCKS)
    sums = torch.empty(rows, heads, parts, d, dtype=torch.float32, device=q.device)
    tops, totals = torch.empty(2, rows, heads, parts, dtype=torch.float32, device=q.device)
    padded = max(_LEAST_HEADS, triton.next_power_of_2(group))
    _paged[(rows, kv_heads, parts)](
        q, keys, values, table, lengths, sums, tops, totals, d**-0.5, slots, width, parts,
        GROUP=group, HEADS=padded, D=d, WIDTH=max(16, triton.next_power_of_2(d)), SIZE=block_tokens,
        PART=PART_BLOCKS, WINDOW=window,
    )  # fmt: skip
    weight = torch.exp(tops - tops.amax(-1, keepdim=True))
    joined = (sums * weight.unsqueeze(-1)).sum(2) / (totals * weight).sum(-1, keepdim=True)
    return joined.to(q.dtype)


@dataclass(frozen=True, slots=True)
class StepBuffers:
    """Inputs of one step: one token per row. Several rows may be consecutive tokens of one sequence. An unused row
    writes to a slot that no sequence owns, and its result is ignored.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    table: Tensor
    lengths: Tensor


Compute = Callable[[StepBuffers], Tensor]


def token_step(decoder: Decoder, pool: Tensor) -> Compute:
    """The scores after one token of every sequence; keys and values go to the pool `[layer, key or value, kv head,
    slot, d]`."""
    windows, size = decoder.shape.windows, decoder.block_tokens
    if size < 16 or size & (size - 1):
        raise ValueError(f"blocks of {size} tokens are no power of two of at least 16")

    def compute(step: StepBuffers) -> Tensor:
        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = pool[index]
            keys.index_copy_(1, step.slots, k.transpose(0, 1))
            values.index_copy_(1, step.slots, v.transpose(0, 1))
            attended = attend_paged(q.contiguous(), keys, values, step.table, step.lengths, size, windows[index])
            return attended.flatten(1)

        with torch.inference_mode():
            return decoder.logits(decoder.finished(decoder.passed(step.ids, step.positions, attend)))

    return compute


class DecodeSteps:
    """Runs `compute` on buffers of few fixed shapes; on a GPU as captured graphs."""

    def __init__(self, compute: Compute, device: torch.device, most_blocks: int, spare_slot: int) -> None:
        self._compute = compute
        self._device = device
        self._most_blocks = most_blocks
        self._spare_slot = spare_slot
        self._shapes: dict[tuple[int, int], tuple[StepBuffers, Callable[[], Tensor]]] = {}
        self._memory: Any = None
        """What all graphs compute in: they run one after another, and an answer is read before the next."""

    @property
    def shapes(self) -> int:
        """Number of shapes met so far, each with one graph."""
        return len(self._shapes)

    def run(
        self, ids: Sequence[int], positions: Sequence[int], slots: Sequence[int], tables: Sequence[Sequence[int]]
    ) -> Tensor:
        """What `compute` gives for these rows; the same memory each time."""
        rows = triton.next_power_of_2(len(ids))
        blocks = min(self._most_blocks, triton.next_power_of_2(max(map(len, tables))))
        if (rows, blocks) not in self._shapes:
            buffers = self._buffers(rows, blocks)
            self._shapes[rows, blocks] = buffers, self._captured(buffers)
        buffers, replay = self._shapes[rows, blocks]
        spare = rows - len(ids)
        _fill(buffers.ids, [*ids, *[0] * spare])
        _fill(buffers.positions, [*positions, *[0] * spare])
        _fill(buffers.slots, [*slots, *[self._spare_slot] * spare])
        _fill(buffers.lengths, [*(at + 1 for at in positions), *[1] * spare])
        padded = [[*table, *[0] * (blocks - len(table))] for table in tables]
        _fill(buffers.table, padded + [[0] * blocks] * spare)
        return replay()[: len(ids)]

    def _buffers(self, rows: int, blocks: int) -> StepBuffers:
        def zeros(*size: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=self._device)

        table, lengths = zeros(rows, blocks, dtype=torch.int32), zeros(rows, dtype=torch.int32)
        slots = zeros(rows).fill_(self._spare_slot)
        return StepBuffers(zeros(rows), zeros(rows), slots, table, lengths.fill_(1))

    def _captured(self, buffers: StepBuffers) -> Callable[[], Tensor]:
        """A graph of the step where there is a GPU, else the step itself."""
        if self._device.type != "cuda" or not torch.cuda.is_available():
            return lambda: self._compute(buffers)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are compiled and libraries made ready outside the capture
            for _ in range(2):
                self._compute(buffers)
        torch.cuda.current_stream().wait_stream(side)
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            answer = self._compute(buffers)

        def replay() -> Tensor:
            graph.replay()
            return answer

        return replay


def _fill(buffer: Tensor, values: Any) -> None:
    buffer.copy_(torch.tensor(values, dtype=buffer.dtype))
