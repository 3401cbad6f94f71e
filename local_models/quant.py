"""Weights in 8 or 4 bits: quantize once without calibration data, save as safetensors, load.

Granularity follows FineQuant: each matrix starts with one scale a row, and the groups are halved while that
still lowers the error enough; where four bits stay too coarse, a matrix is kept in eight. Weights are
symmetric, so there is no zero point. Embeddings and norms keep their format; the head has at least eight bits.
`local_models.products` computes with them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from local_models.checkpoint import expected_shapes, load_tensors, require_manifest
from local_models.errors import CheckpointError
from local_models.manifest import MANIFEST, write_manifest
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


def _all_tensors(folder: Path, device: str = "cpu") -> dict[str, Tensor]:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt", device=device) as weights:
            tensors.update({name: weights.get_tensor(name) for name in weights.keys()})  # noqa: SIM118
    if not tensors:
        raise CheckpointError(f"{folder} has no safetensors")
    return tensors
