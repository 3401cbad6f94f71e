"""Matrix products in which a row's result does not depend on the number of rows.

A request's answer must not depend on the requests in the same batch. Matrix libraries choose another kernel for a
handful of rows than for many, and the two round differently. `least_rows` finds, by trying, from how many rows on a
row's bits no longer change; smaller batches are padded to that. Measured here: 1 for bfloat16 (oneDNN), 4 for float32
(MKL).
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear(Protocol):
    """A matrix product `[rows, in] -> [rows, out]`."""

    def __call__(self, x: Tensor) -> Tensor: ...


class Dense:
    """A weight matrix kept in the model's own number format."""

    __slots__ = ("bias", "least_rows", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, invariant: bool = True) -> None:
        self.weight = weight
        self.bias = bias
        self.least_rows = least_rows(weight.dtype) if invariant and weight.device.type == "cpu" else 1

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        if rows >= self.least_rows:
            return F.linear(x, self.weight, self.bias)
        padded = F.pad(x, (0, 0, 0, self.least_rows - rows))
        return F.linear(padded, self.weight, self.bias)[:rows]


@cache
def least_rows(dtype: torch.dtype) -> int:
    """The least number of rows from which on a row's product no longer depends on their number.

    It is 16 at most; then every batch of up to 16 rows is computed as one of 16.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 1
    for rows, columns in ((192, 64), (1152, 576), (896, 4864)):
        weight = torch.randn(rows, columns, generator=generator).to(dtype)
        x = torch.randn(40, columns, generator=generator).to(dtype)
        full = F.linear(x, weight)
        unlike = [m for m in range(1, 17) if not torch.equal(F.linear(x[:m], weight), full[:m])]
        worst = max(worst, min(16, max(unlike, default=0) + 1))
    return worst
