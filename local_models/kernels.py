"""Triton kernels for a GPU: products of 16-bit activations with 4- or 8-bit weights, expanded on the fly.

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

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from local_models.quant import Packed

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
        product = tl.dot(x_low, tl.trans(low))
        product = tl.dot(x_high, tl.trans(high), product)
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
        product = tl.dot(part, tl.trans(weight.to(x.dtype.element_ty)))
        scale = tl.load(scales + group * columns + column).to(tl.float32)
        sums += product * scale[None, :]
    tl.store(partial + split * rows * columns + row[:, None] * columns + column[None, :], sums, mask=here)


KERNELS = {4: _w4a16, 8: _w8a16}


class GroupLinear:
    """A quantized matrix on a GPU, multiplied without being expanded in memory.

    Its groups must be a power of two of at least 32, its rows a multiple of `columns`.
    """

    def __init__(self, packed: Packed, bias: Tensor | None = None, *, columns: int = 64) -> None:
        rows = packed.values.shape[0]
        groups = packed.scales.shape[1]
        if packed.group < 32 or packed.group & (packed.group - 1) or rows % columns:
            raise ValueError(f"no kernel for groups of {packed.group} and {rows} rows")
        self._packed = packed
        self._scales = packed.scales.t().contiguous()
        self._bias = bias
        self._columns = columns
        self._rows = rows
        self._inner = groups * packed.group
        self._split = split_of(rows // columns, groups)

    def __call__(self, x: Tensor) -> Tensor:
        count, rows = x.shape[0], self._rows
        partial = torch.empty(self._split, count, rows, dtype=torch.float32, device=x.device)
        grid = (rows // self._columns, self._split, triton.cdiv(count, ROWS))
        KERNELS[self._packed.bits][grid](
            x, self._packed.values, self._scales, partial, count, rows, self._inner, x.stride(0),
            GROUP=self._packed.group, ROWS=ROWS, COLUMNS=self._columns,
            GROUPS=self._scales.shape[0] // self._split,
        )  # fmt: skip
        y = partial.sum(0).to(x.dtype)
        return y if self._bias is None else y + self._bias


def split_of(programs: int, groups: int, processors: int = 132) -> int:
    """Into how many parts the inner dimension is cut: enough for two programs a processor, dividing the
    groups."""
    wanted = max(1, 2 * processors // programs)
    return max(split for split in range(1, groups + 1) if groups % split == 0 and split <= max(1, wanted))


def compile_for_sm90(bits: int, *, group: int = 128, columns: int = 64, groups: int = 4) -> Any:
    """The kernel as compiled for an H100 or H200, without one: its PTX, binary and resources."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = {"x": "*bf16", "packed": "*u8", "scales": "*bf16", "partial": "*fp32"}
    if bits == 8:
        pointers = {"x": "*bf16", "values": "*i8", "scales": "*bf16", "partial": "*fp32"}
    sizes = dict.fromkeys(("rows", "columns", "inner", "x_stride"), "i32")
    constants = {"GROUP": group, "ROWS": ROWS, "COLUMNS": columns, "GROUPS": groups}
    divisible = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=KERNELS[bits],
        signature={**pointers, **sizes, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        attrs={(at,): divisible for at in (0, 1, 2, 3, 5, 6, 7)},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": 5})
