"""From quantized matrices to the products a GPU computes: regrouped exactly, tried at load, expanded where a kernel
fails.

The quantizer's groups are whatever pays (`local_models.quant`): a whole row, or 224 columns. The kernels take powers of
two up to 128, so a group is cut into smaller ones that keep its scale, which changes no weight. Matrices that are
computed as one product but differ in bits become eight-bit ones, exactly too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from local_models.linear import Dense, Linear
from local_models.quant import Packed, pack4, unpack4

LEAST_GROUP, MOST_GROUP = 32, 128
_MOST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""Relative, of a product's rows; bfloat16 keeps three digits."""
_log = logging.getLogger(__name__)


def joined(parts: Sequence[Packed]) -> Packed:
    """Matrices one below the other; the same numbers, in groups that a kernel takes if there are any."""
    columns = parts[0].scales.shape[1] * parts[0].group
    bits = max(part.bits for part in parts)
    group = math.gcd(*(part.group for part in parts))
    power = min(MOST_GROUP, group & -group)
    group = power if power >= LEAST_GROUP else group
    values = [_integers(part) for part in parts]
    scales = [part.scales.repeat_interleave(part.group // group, 1) for part in parts]
    together = torch.cat(values)
    packed = Packed(pack4(together, group) if bits == 4 else together, torch.cat(scales), bits, group)
    assert columns == packed.scales.shape[1] * group
    return packed


def grouped_linear(packed: Packed, bias: Tensor | None, dtype: torch.dtype, *, invariant: bool) -> Linear:
    """The product by Triton, after a trial; by torch with the weights expanded, and a line in the log, where that
    fails."""
    from local_models.kernels import GroupLinear

    packed = joined([packed])
    bias = None if bias is None else bias.to(dtype)
    try:
        product = GroupLinear(packed, bias, invariant=invariant)
        reason = _trial(product, packed, bias, dtype)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        if not reason:
            return product
    _tell_once(f"{packed.bits} bits in groups of {packed.group}", reason)
    return Dense(packed.expand(dtype), bias, invariant=invariant)


def dense_linear(weight: Tensor, bias: Tensor | None, *, invariant: bool) -> Linear:
    """An unquantized matrix: by Triton, whose rows don't depend on their number, where that is wanted and works."""
    if not invariant:
        return Dense(weight, bias, invariant=False)
    from local_models.kernels import RowsLinear

    try:
        product = RowsLinear(weight, bias)
        reason = _near(product, Dense(weight, bias), weight)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        if not reason:
            return product
    _tell_once(f"{weight.dtype} matrices", reason)
    return Dense(weight, bias)


_tried = dict[tuple[object, ...], str]()
"""By what decides over a kernel: why it can't be used; empty: it can."""


def _trial(product: Linear, packed: Packed, bias: Tensor | None, dtype: torch.dtype) -> str:
    """Why the product is not close enough, empty where it is; tried once for each size and device."""
    key = (tuple(packed.values.shape), packed.bits, packed.group, dtype, packed.values.device, bias is None)
    if key not in _tried:
        expanded = packed.expand(dtype)
        _tried[key] = _near(product, Dense(expanded, bias), expanded)
    return _tried[key]


def _near(product: Linear, dense: Linear, weight: Tensor) -> str:
    """Empty where one row and more than a program holds come out as they should."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(17, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
    for rows in (x[:1], x):
        exact, found = dense(rows).float(), product(rows).float()
        off = float((found - exact).norm() / exact.norm().clamp_min(1e-12))
        if not off <= _MOST_ERROR.get(weight.dtype, 1e-2):
            return f"products of {len(rows)} rows are off by {off:.2g}"
    return ""


@cache
def _tell_once(what: str, reason: str) -> None:
    _log.warning("no kernel for %s, torch computes them: %s", what, reason)


def _integers(part: Packed) -> Tensor:
    return unpack4(part.values, part.group) if part.bits == 4 else part.values
