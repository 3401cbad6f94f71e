"""Triton kernels for a GPU: products of 16-bit activations with 4- or 8-bit weights, expanded on the fly, and with
16-bit ones where a row must not depend on how many others are computed.

Decoding reads every weight once a step, so a product that reads a quarter of the bytes can be up to four
times as fast, until arithmetic is the limit. Rows are few (at most 16 a program), so work is divided over
output columns and over the inner dimension (split-K): partial sums go to their own places and are added in a
fixed order, which keeps the result the same from run to run, as atomic additions would not. The scale of a
group multiplies the accumulator once after the group's product, not every weight.

The layout is that of `local_models.quant`: in four bits each group's first half lies in the low bits. No
figure of these kernels' speed is claimed here: that takes a GPU. Without one they are run by Triton's
interpreter and compiled for sm_90.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from local_models.quant import Packed, unpack4

ROWS = 16
"""Rows of activations one program computes; the least a tensor core takes."""


@triton.jit  # type: ignore[untyped-decorator]
def _w4a16(  # type: ignore[no-untyped-def]
    x, packed, scales, partial, rows, columns, inner, x_stride,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """One program: `ROWS x COLUMNS` of the product over `GROUPS` groups of the inner dimension."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    half: tl.constexpr = GROUP // 2
    at = tl.arange(0, half)
    here = row[:, None] < rows
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(GROUPS):
        group = split * GROUPS + step
        both = tl.load(packed + column[:, None] * (inner // 2) + group * half + at[None, :])
        low = ((both & 15).to(tl.int8) - 8).to(x.dtype.element_ty)
        high = ((both >> 4).to(tl.int8) - 8).to(x.dtype.element_ty)
        x_low = tl.load(x + row[:, None] * x_stride + group * GROUP + at[None, :], mask=here, other=0.0)
        x_high = tl.load(x + row[:, None] * x_stride + group * GROUP + half + at[None, :], mask=here, other=0.0)
        product = tl.dot(x_low, tl.trans(low), input_precision="ieee")
        product = tl.dot(x_high, tl.trans(high), product, input_precision="ieee")
        scale = tl.load(scales + group * columns + column).to(tl.float32)
        sums += product * scale[None, :]
    tl.store(partial + split * rows * columns + row[:, None] * columns + column[None, :], sums, mask=here)


@triton.jit  # type: ignore[untyped-decorator]
def _w8a16(  # type: ignore[no-untyped-def]
    x, values, scales, partial, rows, columns, inner, x_stride,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """As `_w4a16`, one signed byte a weight."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, GROUP)
    here = row[:, None] < rows
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(GROUPS):
        group = split * GROUPS + step
        weight = tl.load(values + column[:, None] * inner + group * GROUP + at[None, :])
        part = tl.load(x + row[:, None] * x_stride + group * GROUP + at[None, :], mask=here, other=0.0)
        product = tl.dot(part, tl.trans(weight.to(x.dtype.element_ty)), input_precision="ieee")
        scale = tl.load(scales + group * columns + column).to(tl.float32)
        sums += product * scale[None, :]
    tl.store(partial + split * rows * columns + row[:, None] * columns + column[None, :], sums, mask=here)


@triton.jit  # type: ignore[untyped-decorator]
def _w16a16(  # type: ignore[no-untyped-def]
    x, weight, partial, rows, columns, inner, x_stride,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """As `_w8a16`, weights as they are."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, GROUP)
    here = row[:, None] < rows
    real = column < columns
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(GROUPS):
        inside = (split * GROUPS + step) * GROUP + at
        where = column[:, None].to(tl.int64) * inner + inside[None, :]
        held = tl.load(weight + where, mask=real[:, None], other=0.0)
        part = tl.load(x + row[:, None] * x_stride + inside[None, :], mask=here, other=0.0)
        sums = tl.dot(part, tl.trans(held), sums, input_precision="ieee")
    out = partial + split * rows * columns + row[:, None] * columns + column[None, :]
    tl.store(out, sums, mask=here & real[None, :])


KERNELS = {4: _w4a16, 8: _w8a16}
COLUMNS = 64
"""Rows of a matrix that one program computes: columns of the result."""
MOST_ROWS = 64
"""Beyond so many rows of activations a matrix expanded once is faster than one expanded for every 16 of them."""


class GroupLinear:
    """A quantized matrix on a GPU, multiplied without being expanded in memory.

    Its groups must be a power of two of at least 32. With `invariant` a row's result depends on the row alone, at any
    number of rows; without it torch multiplies many rows by the expanded matrix.
    """

    __slots__ = (
        "_bias", "_groups", "_inner", "_invariant", "_packed", "_rows", "_scales", "_split", "_values",
    )  # fmt: skip

    def __init__(self, packed: Packed, bias: Tensor | None = None, *, invariant: bool = True) -> None:
        rows, groups = packed.scales.shape
        if packed.group < 32 or packed.group & (packed.group - 1):
            raise ValueError(f"no kernel for groups of {packed.group}")
        more = -rows % COLUMNS
        self._packed = packed
        self._values = F.pad(packed.values, (0, 0, 0, more)) if more else packed.values
        # What is padded has scales of zero.
        self._scales = F.pad(packed.scales, (0, 0, 0, more)).t().contiguous()
        self._bias = bias
        self._rows, self._inner = rows, groups * packed.group
        self._groups = groups
        self._split = split_of((rows + more) // COLUMNS, groups, processors(packed.values.device))
        self._invariant = invariant

    def __call__(self, x: Tensor) -> Tensor:
        if not self._invariant and x.shape[0] > MOST_ROWS:
            return F.linear(x, _expanded(self._packed, x.dtype), self._bias)
        count, rows = x.shape[0], self._values.shape[0]
        partial = torch.empty(self._split, count, rows, dtype=torch.float32, device=x.device)
        KERNELS[self._packed.bits][(rows // COLUMNS, self._split, triton.cdiv(count, ROWS))](
            x, self._values, self._scales, partial, count, rows, self._inner, x.stride(0),
            GROUP=self._packed.group, ROWS=ROWS, COLUMNS=COLUMNS, GROUPS=self._groups // self._split,
        )  # fmt: skip
        return _summed(partial, x.dtype, self._bias)[:, : self._rows]


class RowsLinear:
    """A matrix as it is, each row of activations multiplied in one and the same order of sums."""

    __slots__ = ("_bias", "_group", "_split", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        rows, inner = weight.shape
        self._group = min(128, inner & -inner)
        if self._group < 32:
            raise ValueError(f"no kernel for {inner} columns")
        self._weight, self._bias = weight.contiguous(), bias
        self._split = split_of(triton.cdiv(rows, COLUMNS), inner // self._group, processors(weight.device))

    def __call__(self, x: Tensor) -> Tensor:
        count, (rows, inner) = x.shape[0], self._weight.shape
        partial = torch.empty(self._split, count, rows, dtype=torch.float32, device=x.device)
        _w16a16[(triton.cdiv(rows, COLUMNS), self._split, triton.cdiv(count, ROWS))](
            x, self._weight, partial, count, rows, inner, x.stride(0),
            GROUP=self._group, ROWS=ROWS, COLUMNS=COLUMNS, GROUPS=inner // self._group // self._split,
        )  # fmt: skip
        return _summed(partial, x.dtype, self._bias)


def _summed(partial: Tensor, dtype: torch.dtype, bias: Tensor | None) -> Tensor:
    y = (partial[0] if len(partial) == 1 else partial.sum(0)).to(dtype)
    return y if bias is None else F.pad(bias, (0, y.shape[1] - len(bias))) + y


def _expanded(packed: Packed, dtype: torch.dtype) -> Tensor:
    """The matrix in the activations' format, without a larger one in between."""
    integers = unpack4(packed.values, packed.group) if packed.bits == 4 else packed.values
    grouped = integers.to(dtype).view(*packed.scales.shape, packed.group)
    return grouped.mul_(packed.scales.to(dtype).unsqueeze(-1)).view(len(packed.scales), -1)


@cache
def processors(device: torch.device) -> int:
    """Number of the GPU's multiprocessors; that of an H200 where there is no GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def split_of(programs: int, groups: int, processors: int = 132) -> int:
    """Into how many parts the inner dimension is cut: enough for two programs a processor, dividing the
    groups."""
    wanted = max(1, 2 * processors // programs)
    return max(split for split in range(1, groups + 1) if groups % split == 0 and split <= max(1, wanted))
