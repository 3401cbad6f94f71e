"""Tiny random checkpoints of each family, written by transformers, with which the engine is compared."""

import random
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from local_models import shipped_models
from local_models.decoder import Decoder
from local_models.engine import Engine, EngineOptions
from local_models.request import Delta, Finished, Request
from local_models.text import TextCodec

_BASE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
    "initializer_range": 0.15,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-mha-tied": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama-mqa-bias": ("Llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "llama-rope3": ("Llama", {"rope_parameters": _LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": _LINEAR}),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied-deep": ("Qwen2", {"tie_word_embeddings": True, "num_hidden_layers": 4}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 12}),
    "qwen3-wide-heads": ("Qwen3", {"head_dim": 32, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 16, "head_dim": 16}),
}


@dataclass(frozen=True)
class Answer:
    """The answer of an engine to one request."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    last: Finished


def oracle(variant: str, **more: Any) -> Any:
    """The model as transformers computes it; its weights are random with a fixed seed."""
    family, changes = VARIANTS[variant]
    config = getattr(transformers, f"{family}Config")(**{**_BASE, **changes, **more})
    torch.manual_seed(sum(map(ord, variant)))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():  # biases and norms start as zeros and ones, which would hide mistakes in them
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def write_folder(variant: str, folder: Path, **more: Any) -> Any:
    """Save a random checkpoint with the shipped models' tokenizer; returns transformers' model."""
    model = oracle(variant, **more)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shipped_models()["tiny-small"] / name, folder / name)
    return model


def generated(model: Any, prompt: list[int], tokens: int) -> list[int]:
    """Transformers' greedy continuation."""
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=-1,  # it never ends before
        )
    return output[0, len(prompt) :].tolist()


@cache
def codec() -> TextCodec:
    """The shipped models' tokenizer."""
    return TextCodec(shipped_models()["tiny-small"])


@cache
def decoder(name: str = "tiny-small", dtype: str = "auto", block_tokens: int = 16) -> Decoder:
    """A shipped model's weights, loaded once."""
    return Decoder.load(shipped_models()[name], dtype, block_tokens)


def engine(name: str = "tiny-small", **options: Any) -> Engine:
    """A fresh engine on a shipped model."""
    return Engine(decoder(name), codec(), EngineOptions(**{"kv_tokens": 4096, **options}))


def prompts(count: int, seed: int, longest: int = 90, vocabulary: int = 96) -> list[list[int]]:
    """Random prompts of very different lengths."""
    rng = random.Random(seed)
    return [[rng.randrange(2, vocabulary) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def run(engine: Engine, requests: list[Request], audit: bool = True) -> dict[str, Answer]:
    """Serve all requests to their ends. Asserts one `Finished` each, as its last event, and no leaked block."""
    for request in requests:
        engine.add(request)
    said: dict[str, list[Delta]] = {request.id: [] for request in requests}
    ended: dict[str, Finished] = {}
    while engine.busy:
        for event in engine.step():
            assert event.request_id not in ended, "an event after the last"
            if isinstance(event, Finished):
                ended[event.request_id] = event
            else:
                said[event.request_id].append(event)
        if audit:
            engine.audit()
    assert ended.keys() == said.keys()
    return {name: _answer(deltas, ended[name]) for name, deltas in said.items()}


def _answer(deltas: list[Delta], last: Finished) -> Answer:
    ids = tuple(token_id for delta in deltas for token_id in delta.token_ids)
    logprobs = tuple(entry.logprob for delta in deltas for entry in delta.logprobs)
    return Answer(ids, logprobs, "".join(delta.text for delta in deltas) + last.text, last)


def greedy(name: str, prompt: list[int], tokens: int = 16, **options: Any) -> Request:
    """A request for exactly this many most likely tokens, with their log-probabilities."""
    return Request(name, tuple(prompt), tokens, ignore_end=True, top_logprobs=0, **options)
