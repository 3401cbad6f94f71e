"""The products of a model's matrices, by the fastest implementation that is available: our compiled functions, oneDNN's
integers, Triton on a GPU, or plain torch.

On a CPU eight-bit rows are multiplied as integers, with one scale a row of activations: exact sums, so that a row's
result depends on nothing but the row. `local_models.native` does it where it can be had, else oneDNN. That operator is
an internal one of torch: it is tried on a known product at load, and where it is missing or wrong, weights are expanded
to the model's own format instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from local_models.grouped import dense_linear, grouped_linear, joined
from local_models.linear import Dense, Linear
from local_models.native import Int8Panels, Kernels, Panels
from local_models.quant import Packed, Weight, quantize


class Int8Rows:
    """Integer products with one scale a row of weights and one a row of activations (W8A8)."""

    __slots__ = ("_bias", "_most", "_packed", "_scales", "_zeros")

    def __init__(self, packed: Packed, bias: Tensor | None = None, *, most: int = 127) -> None:
        """`most` is the largest activation as an integer: 127, or 63 where sums of pairs saturate at 16
        bits."""
        self._packed = torch.ops.onednn.qlinear_prepack(packed.values, None)
        self._scales = packed.scales.float().flatten()
        self._zeros = torch.zeros(packed.values.shape[0], dtype=torch.int64)
        self._bias = bias
        self._most = most

    def __call__(self, x: Tensor) -> Tensor:
        zero = self._most + 1
        step = (x.float().abs().amax(-1, keepdim=True) / self._most).clamp_min(1e-8)
        # Unsigned around the middle: signed activations take a path a thousand times slower.
        integers = (x / step).round().add_(zero).to(torch.uint8)
        y = torch.ops.onednn.qlinear_pointwise(
            integers, 1.0, zero, self._packed, self._scales, self._zeros, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        y = (y * step).to(x.dtype)
        return y if self._bias is None else y + self._bias


@cache
def int8_levels() -> int | None:
    """The largest activation with which torch's integer products are exact here; None where there are none.

    Processors without VNNI add pairs of products in 16 bits, which saturate with activations of eight bits.
    """
    for most in (127, 63):
        try:
            if _is_exact(most):
                return most
        except (AttributeError, RuntimeError, TypeError):
            return None
    return None


def _is_exact(most: int) -> bool:
    """True when extreme products come out as whole numbers do, alone and in company."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(-127, 128, (48, 96), generator=generator, dtype=torch.int8)
    values[:16] = 127 * torch.sign(values[:16])
    activations = torch.randint(-most, most + 1, (9, 96), generator=generator)
    activations[:4] = most * values[:4].long().sign()
    activations[:, 0] = most  # so that a row's step is exactly 1
    x = activations.float()
    product = Int8Rows(Packed(values, torch.ones(48, 1), 8, 96), most=most)
    exact = (activations @ values.long().T).float()
    alone = torch.cat([product(x[at : at + 1]) for at in range(9)])
    return bool(torch.equal(product(x), exact)) and bool(torch.equal(alone, exact))


@dataclass(frozen=True, slots=True)
class LinearFactory:
    """Makes the product of a matrix, by the implementation that is to compute it."""

    dtype: torch.dtype
    int8: bool = False
    """Quantize matrices that are not quantized yet to eight-bit rows."""
    native: Kernels | None = None
    """The compiled functions that compute; None: torch computes."""
    grouped: bool = False
    """Whether Triton computes, on a GPU."""
    invariant: bool = True
    """Whether no row's bits may depend on how many others are computed, also where no kernel of ours computes."""

    def dense(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """The product of an unquantized matrix."""
        if self.grouped:
            return dense_linear(weight, bias, invariant=self.invariant)
        return Panels(self.native, weight, bias) if self.native else Dense(weight, bias, invariant=self.invariant)

    def packed(self, packed: Packed, bias: Tensor | None) -> Linear:
        """The product of a quantized matrix: in integers where that works, otherwise of the expanded matrix."""
        if self.grouped:
            return grouped_linear(packed, bias, self.dtype, invariant=self.invariant)
        if packed.is_int8_rows and self.native:
            return Int8Panels(self.native, packed.values, packed.scales, bias)
        most = int8_levels() if packed.is_int8_rows else None
        if most is not None:
            return Int8Rows(packed, bias, most=most)
        return self.dense(packed.expand(self.dtype), bias)


def fused_linear(weights: dict[str, Weight], names: list[str], factory: LinearFactory) -> Linear:
    """One product for several matrices, which are taken out of `weights`, so that none is held twice."""
    parts = [weights.pop(name + ".weight") for name in names]
    biases = [weights.pop(name + ".bias") for name in names if name + ".bias" in weights]
    bias = torch.cat([b for b in biases if isinstance(b, Tensor)]) if biases else None
    return _linear(parts, bias, factory)


def head_linear(weights: dict[str, Weight], factory: LinearFactory) -> Linear:
    """The product that gives scores; of the embedding where the two are tied."""
    head = weights.pop("lm_head.weight", None)
    return _linear([weights["model.embed_tokens.weight"] if head is None else head], None, factory)


def _linear(parts: list[Weight], bias: Tensor | None, factory: LinearFactory) -> Linear:
    packed = [part for part in parts if isinstance(part, Packed) and (part.is_int8_rows or factory.grouped)]
    if len(packed) == len(parts):
        if factory.grouped:
            return factory.packed(joined(packed), bias)
        values = torch.cat([part.values for part in packed])
        scales = torch.cat([part.scales for part in packed])
        return factory.packed(Packed(values, scales, 8, values.shape[1]), bias)
    dense = torch.cat([part.expand(factory.dtype) if isinstance(part, Packed) else part for part in parts])
    return factory.packed(quantize(dense, 8, dense.shape[1]), bias) if factory.int8 else factory.dense(dense, bias)
