"""Read the weights of a Hugging Face folder: every tensor present, of its right shape, and finite in size.

Refuses anything but safetensors (no pickle), truncated files, and tensors whose shape the config contradicts.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from local_models.errors import CheckpointError
from local_models.manifest import ManifestError, verify_manifest
from local_models.shape import Shape, read_object


def load_tensors(folder: Path, shape: Shape, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    """All weights the forward pass needs, as `dtype`, under their Hugging Face names."""
    require_manifest(folder)
    wanted = expected_shapes(shape)
    found: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        found.update(_read_file(file, wanted, dtype, device))
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors, the first is {missing[0]}")
    return found


def require_manifest(folder: Path) -> None:
    """Raise `CheckpointError` unless the folder holds what its manifest says; one without a manifest passes."""
    try:
        verify_manifest(folder)
    except ManifestError as error:
        raise CheckpointError(str(error)) from error


def expected_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name and size of every tensor of a checkpoint of this shape."""
    hidden, head = shape.hidden, shape.head_dim
    sizes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    if not shape.tied:
        sizes["lm_head.weight"] = (shape.vocabulary, hidden)
    rows = {"q": shape.heads * head, "k": shape.kv_heads * head, "v": shape.kv_heads * head}
    for layer in range(shape.layers):
        name = f"model.layers.{layer}."
        sizes[name + "input_layernorm.weight"] = (hidden,)
        sizes[name + "post_attention_layernorm.weight"] = (hidden,)
        for part, count in rows.items():
            _linear(sizes, f"{name}self_attn.{part}_proj", count, hidden, shape.qkv_bias)
        _linear(sizes, name + "self_attn.o_proj", hidden, rows["q"], shape.out_bias)
        for part in ("gate", "up"):
            _linear(sizes, f"{name}mlp.{part}_proj", shape.intermediate, hidden, shape.mlp_bias)
        _linear(sizes, name + "mlp.down_proj", hidden, shape.intermediate, shape.mlp_bias)
        if shape.qk_norm:
            sizes[name + "self_attn.q_norm.weight"] = (head,)
            sizes[name + "self_attn.k_norm.weight"] = (head,)
    return sizes


def _linear(sizes: dict[str, tuple[int, ...]], name: str, rows: int, columns: int, bias: bool) -> None:
    sizes[name + ".weight"] = (rows, columns)
    if bias:
        sizes[name + ".bias"] = (rows,)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        mapped = read_object(index).get("weight_map")
        names = sorted(set(map(str, mapped.values()))) if isinstance(mapped, dict) else []
        strays = [name for name in names if Path(name).name != name]
        if not names or strays:
            raise CheckpointError(f"{index} names {strays[0] + ', outside the folder' if strays else 'no files'}")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if not single.is_file():
        raise CheckpointError(f"{folder} has no model.safetensors")
    return [single]


def _read_file(file: Path, wanted: dict[str, tuple[int, ...]], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    tensors = {}
    try:
        with safe_open(file, framework="pt", device=device) as weights:
            for name in weights.keys() & wanted.keys():
                size = tuple(weights.get_slice(name).get_shape())
                if size != wanted[name]:
                    raise CheckpointError(f"{file}: {name} is {size}, the config says {wanted[name]}")
                tensors[name] = weights.get_tensor(name).to(dtype)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    return tensors
