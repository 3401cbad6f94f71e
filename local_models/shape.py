"""What a checkpoint's `config.json` says about the forward pass, for the four dense decoder families.

Refuses, with the reason, what the engine would compute wrongly: other architectures, unknown rotary scalings,
other activations. Those are served through an adapter (`local_models.backends`) by an engine that knows them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_models.errors import CheckpointError

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MistralForCausalLM": "mistral",
}
_COUNTS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip
_ADAPTER_HINT = "serve it with vLLM, SGLang or llama-server and reach it through an openai provider"


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes and switches of one decoder; `windows[layer]` is 0 where attention reaches back without limit."""

    family: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    context_tokens: int
    inverse_frequencies: tuple[float, ...]
    tied: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int, ...]
    dtype: str
    end_ids: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """Number of weights, biases and norms left out."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        block = attention + 3 * self.hidden * self.intermediate
        return self.layers * block + self.vocabulary * self.hidden * (1 if self.tied else 2)


def read_shape(folder: Path) -> Shape:
    """The shape a model folder declares; `CheckpointError` when it is none the engine computes."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json")
    config = read_object(path)
    try:
        return shape_of(config, _end_ids(folder, config))
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} lacks or garbles {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object in a model's folder; `CheckpointError` where the file holds anything else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return found


def shape_of(config: dict[str, Any], end_ids: tuple[int, ...]) -> Shape:
    """The shape a config describes."""
    family = _family(config)
    if config.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"activation {config['hidden_act']!r} is not computed here; {_ADAPTER_HINT}")
    for name in _COUNTS:
        if not isinstance(config[name], int) or config[name] < 1:
            raise CheckpointError(f"{name} of the config is {config[name]!r}, not a number of at least 1")
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    bias = bool(config.get("attention_bias", False))
    return Shape(
        family=family,
        vocabulary=config["vocab_size"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        eps=config.get("rms_norm_eps", 1e-6),
        context_tokens=config["max_position_embeddings"],
        inverse_frequencies=_rope(config, head_dim),
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=bias or family == "qwen2",
        out_bias=bias and family != "qwen2",
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        windows=_windows(config, family),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        end_ids=end_ids,
    )


def _family(config: dict[str, Any]) -> str:
    architectures = config.get("architectures") or []
    for architecture in architectures:
        if architecture in FAMILIES:
            return FAMILIES[architecture]
    named = ", ".join(architectures) or config.get("model_type", "unknown")
    raise CheckpointError(f"architecture {named} is none of {', '.join(FAMILIES)}; {_ADAPTER_HINT}")


def _windows(config: dict[str, Any], family: str) -> tuple[int, ...]:
    layers = config["num_hidden_layers"]
    window = config.get("sliding_window") or 0
    if family in ("qwen2", "qwen3") and not config.get("use_sliding_window", False):
        window = 0
    if family == "llama":
        window = 0
    kinds = config.get("layer_types") or ["sliding_attention" if window else "full_attention"] * layers
    if family in ("qwen2", "qwen3") and window and not config.get("layer_types"):
        first = config.get("max_window_layers", layers)
        kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def _rope(config: dict[str, Any], head_dim: int) -> tuple[float, ...]:
    """Inverse frequencies; transformers 5 keeps their rule in `rope_parameters`, earlier ones beside
    it."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = parameters.get("rope_theta") or config.get("rope_theta") or 10_000.0
    plain = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return tuple(plain)
    if kind == "linear":
        return tuple(f / parameters["factor"] for f in plain)
    if kind == "llama3":
        return tuple(_llama3_frequency(f, parameters) for f in plain)
    raise CheckpointError(f"rotary scaling {kind!r} is not computed here; {_ADAPTER_HINT}")


def _llama3_frequency(frequency: float, parameters: dict[str, Any]) -> float:
    """Llama 3.1's piecewise scaling: long wave lengths slowed by `factor`, short kept, a ramp between."""
    factor, low, high = parameters["factor"], parameters["low_freq_factor"], parameters["high_freq_factor"]
    original = parameters["original_max_position_embeddings"]
    wave_length = 2 * math.pi / frequency
    if wave_length > original / low:
        return float(frequency / factor)
    if wave_length < original / high:
        return frequency
    smooth = (original / wave_length - low) / (high - low)
    return float((1 - smooth) * frequency / factor + smooth * frequency)


def _end_ids(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    generation = read_object(path) if path.is_file() else {}
    ids = generation.get("eos_token_id", config.get("eos_token_id"))
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(map(int, ids))
