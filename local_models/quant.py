"""Weights in 8 or 4 bits: quantize once without calibration data, save as safetensors, load, compute.

Granularity follows FineQuant: each matrix starts with one scale a row, and the groups are halved while that
still lowers the error enough; where four bits stay too coarse a matrix is kept in eight. Weights are
symmetric, so there is no zero point. Embeddings and norms keep their format; the head is eight bits at least.

On a CPU eight-bit rows are multiplied as integers, with one scale a row of activations: exact sums, so a row's result
depends on nothing but the row. `local_models.native` does it where it can be had, else oneDNN. That operator is an
internal one of torch: it is tried on a known product at load, and where it is missing or wrong, weights are expanded
to the model's own format instead.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import copyfile
from typing import TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from local_models.checkpoint import expected_shapes, load_tensors, require_manifest
from local_models.errors import CheckpointError
from local_models.linear import Dense, Linear
from local_models.manifest import MANIFEST, write_manifest
from local_models.native import Int8Panels, Kernels, Panels
from local_models.shape import Shape, read_shape

QUANTIZED = "quantization.json"
_OWN_FILES = (MANIFEST, QUANTIZED, "model.safetensors.index.json")
_KEPT = ("model.embed_tokens.weight", "model.norm.weight")
_COARSEST_ERROR = 0.1
"""Relative error of a four-bit matrix above which it is kept in eight bits."""
_WORTH = 0.93
"""A finer group must bring the error below this share of the coarser one's."""
_FINEST_GROUP = 32


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix `[rows, columns]` as integers and scales `[rows, columns / group]`.

    Four-bit values lie two in a byte: within each group the first half in the low bits, the second in the
    high.
    """

    values: Tensor
    scales: Tensor
    bits: int
    group: int

    @property
    def bytes(self) -> int:
        """Memory of values and scales."""
        return int(self.values.numel() + self.scales.numel() * self.scales.element_size())

    @property
    def is_int8_rows(self) -> bool:
        """Eight bits with one scale a row: what integer products take."""
        return self.bits == 8 and self.group == self.values.shape[1]

    def expand(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix the integers stand for."""
        integers = unpack4(self.values, self.group) if self.bits == 4 else self.values
        rows, columns = integers.shape
        grouped = integers.float().view(rows, columns // self.group, self.group)
        return (grouped * self.scales.float().unsqueeze(-1)).view(rows, columns).to(dtype)


Weight: TypeAlias = Tensor | Packed


def quantize(weight: Tensor, bits: int, group: int) -> Packed:
    """Round a matrix to signed integers, one scale for `group` neighbours in a row."""
    rows, columns = weight.shape
    if columns % group or (bits == 4 and group % 2):
        raise ValueError(f"groups of {group} do not divide {columns} columns")
    most = 2 ** (bits - 1) - 1
    grouped = weight.float().view(rows, columns // group, group)
    scales = (grouped.abs().amax(-1) / most).clamp_min(1e-8)
    integers = (grouped / scales.unsqueeze(-1)).round().clamp(-most - 1, most).to(torch.int8).view(rows, columns)
    return Packed(pack4(integers, group) if bits == 4 else integers, scales, bits, group)


def pack4(integers: Tensor, group: int) -> Tensor:
    """Two signed four-bit values in a byte, offset by 8."""
    rows, columns = integers.shape
    halves = (integers + 8).to(torch.uint8).view(rows, columns // group, 2, group // 2)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(rows, columns // 2)


def unpack4(packed: Tensor, group: int) -> Tensor:
    """The inverse of `pack4`."""
    rows, half = packed.shape
    grouped = packed.view(rows, -1, 1, group // 2)
    both = torch.cat([grouped & 15, grouped >> 4], 2)
    return (both.to(torch.int8) - 8).reshape(rows, 2 * half)


def fine_quantize(weight: Tensor, bits: int) -> Packed:
    """The coarsest groups whose halving no longer pays; eight bits where four are too coarse."""
    columns = weight.shape[1]
    group = columns
    best = quantize(weight, bits, group)
    error = relative_error(weight, best)
    while bits == 4 and group % 2 == 0 and group // 2 >= _FINEST_GROUP and (group // 2) % 2 == 0:
        finer = quantize(weight, bits, group // 2)
        finer_error = relative_error(weight, finer)
        if finer_error >= _WORTH * error and error < _COARSEST_ERROR:
            break
        best, error, group = finer, finer_error, group // 2
    if bits == 4 and error > _COARSEST_ERROR:
        return quantize(weight, 8, columns)
    return best


def relative_error(weight: Tensor, packed: Packed) -> float:
    """Norm of the rounding error over the norm of the matrix."""
    return float((packed.expand() - weight.float()).norm() / weight.float().norm().clamp_min(1e-12))


def quantize_folder(source: Path, target: Path, bits: int) -> dict[str, float]:
    """Write a quantized copy of a model folder; returns each matrix's relative error.

    The result loads here and, being integers, nowhere else.
    """
    shape = read_shape(source)
    target.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    layout: dict[str, dict[str, int]] = {}
    errors = {}
    for name, tensor in _all_tensors(source).items():
        if tensor.ndim != 2 or name in _KEPT:
            tensors[name] = tensor
            continue
        packed = fine_quantize(tensor, 8 if name == "lm_head.weight" else bits)
        errors[name] = relative_error(tensor, packed)
        tensors[name] = packed.values
        tensors[name + ".scales"] = packed.scales.to(torch.float32)
        layout[name] = {"bits": packed.bits, "group": packed.group}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps({"schema": 1, "dtype": shape.dtype, "matrices": layout}, indent=1)
    (target / QUANTIZED).write_text(text + "\n")
    for path in source.iterdir():
        if path.is_file() and path.suffix in (".json", ".jinja") and path.name not in _OWN_FILES:
            copyfile(path, target / path.name)
    worst = round(max(errors.values(), default=0.0), 5)
    write_manifest(target, {"bits": bits, "worst_relative_error": worst})
    return errors


def read_layout(folder: Path) -> dict[str, dict[str, int]] | None:
    """Bits and group of each quantized matrix; None for a folder that is not quantized."""
    path = folder / QUANTIZED
    if not path.is_file():
        return None
    try:
        matrices: dict[str, dict[str, int]] = json.loads(path.read_text())["matrices"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read") from error
    return matrices


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


def load_weights(folder: Path, shape: Shape, dtype: torch.dtype, device: str = "cpu") -> dict[str, Weight]:
    """All weights of a folder, quantized or not; `CheckpointError` says what is missing or of the wrong
    size."""
    layout = read_layout(folder)
    if layout is None:
        return dict(load_tensors(folder, shape, dtype, device))
    require_manifest(folder)
    tensors = _all_tensors(folder, device)
    weights: dict[str, Weight] = {}
    for name, size in expected_shapes(shape).items():
        tensor, scales = tensors.get(name), tensors.get(name + ".scales")
        if name not in layout:
            if tensor is None or tuple(tensor.shape) != size:
                raise CheckpointError(f"{folder}: {name} is missing or not {size}")
            weights[name] = tensor.to(dtype)
            continue
        bits, group = layout[name]["bits"], layout[name]["group"]
        packed_size = (size[0], size[1] * bits // 8)
        if tensor is None or scales is None or tuple(tensor.shape) != packed_size:
            raise CheckpointError(f"{folder}: {name} is missing or not {packed_size}")
        if tuple(scales.shape) != (size[0], size[1] // group):
            raise CheckpointError(f"{folder}: the scales of {name} are {tuple(scales.shape)}")
        weights[name] = Packed(tensor, scales, bits, group)
    return weights


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which implementation computes a matrix's products."""

    dtype: torch.dtype
    int8: bool = False
    """Make eight-bit rows of what is none; what is stays so."""
    native: Kernels | None = None
    """Who computes; None: torch."""
    grouped: bool = False
    """Who computes is Triton: on a GPU."""
    invariant: bool = True
    """Where no kernel of ours does: no row's bits depend on how many others are computed."""

    def dense(self, weight: Tensor, bias: Tensor | None) -> Linear:
        if self.grouped:
            from local_models.grouped import dense_linear

            return dense_linear(weight, bias, invariant=self.invariant)
        return Panels(self.native, weight, bias) if self.native else Dense(weight, bias, invariant=self.invariant)

    def packed(self, packed: Packed, bias: Tensor | None) -> Linear:
        """The product of a quantized matrix: in integers where that works, otherwise of the expanded matrix."""
        if self.grouped:
            from local_models.grouped import grouped_linear

            return grouped_linear(packed, bias, self.dtype, invariant=self.invariant)
        if packed.is_int8_rows and self.native:
            return Int8Panels(self.native, packed.values, packed.scales, bias)
        most = int8_levels() if packed.is_int8_rows else None
        if most is not None:
            return Int8Rows(packed, bias, most=most)
        return self.dense(packed.expand(self.dtype), bias)


def fused_linear(weights: dict[str, Weight], names: list[str], recipe: Recipe) -> Linear:
    """One product for several matrices; they leave `weights`, so that none is held twice."""
    parts = [weights.pop(name + ".weight") for name in names]
    biases = [weights.pop(name + ".bias") for name in names if name + ".bias" in weights]
    bias = torch.cat([b for b in biases if isinstance(b, Tensor)]) if biases else None
    return _linear(parts, bias, recipe)


def head_linear(weights: dict[str, Weight], recipe: Recipe) -> Linear:
    """The product that gives scores; of the embedding where the two are tied."""
    head = weights.pop("lm_head.weight", None)
    return _linear([weights["model.embed_tokens.weight"] if head is None else head], None, recipe)


def _linear(parts: list[Weight], bias: Tensor | None, recipe: Recipe) -> Linear:
    packed = [part for part in parts if isinstance(part, Packed) and (part.is_int8_rows or recipe.grouped)]
    if len(packed) == len(parts):
        if recipe.grouped:
            from local_models.grouped import joined

            return recipe.packed(joined(packed), bias)
        values = torch.cat([part.values for part in packed])
        scales = torch.cat([part.scales for part in packed])
        return recipe.packed(Packed(values, scales, 8, values.shape[1]), bias)
    dense = torch.cat([part.expand(recipe.dtype) if isinstance(part, Packed) else part for part in parts])
    return recipe.packed(quantize(dense, 8, dense.shape[1]), bias) if recipe.int8 else recipe.dense(dense, bias)


def _all_tensors(folder: Path, device: str = "cpu") -> dict[str, Tensor]:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt", device=device) as weights:
            tensors.update({name: weights.get_tensor(name) for name in weights.keys()})  # noqa: SIM118
    if not tensors:
        raise CheckpointError(f"{folder} has no safetensors")
    return tensors
