"""Train the two shipped models from nothing: `python -m local_models.train_tiny --out DIR`.

Why it exists: tests, the demo and a first start need language models whose behaviour is real and whose making
is known; nothing is downloaded. The budget is counted in steps, not seconds, and every random number is
seeded, so a second run on the same processor and torch gives the same weights. Two-dimensional weights are
optimised with Muon (Jordan, 2024: orthogonalised momentum), the rest with AdamW.

The result is a plain Hugging Face folder of the Llama family with a character tokenizer and a chat template.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models
from torch import Tensor

from local_models.manifest import write_manifest
from local_models.tasks import Question, draw, training_questions
from local_models.training import IGNORED, Pair, collate, cosine_schedule, exact_match

SPECIAL = ("<pad>", "<eos>", "<user>", "<asst>", "<sys>")
PAD, EOS, USER, ASSISTANT = 0, 1, 2, 3
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 +-*=/?.,:;'\"{}[]()<>_\n!$%&#@"
VOCABULARY = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS))}
# The models know one question and its answer, so a system message is left out.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<user>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<asst>{{ m['content'] }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<asst>{% endif %}"
)
CONTEXT_TOKENS = 512
EPS = 1e-6
ROPE_THETA = 10_000.0
WARM_UP_STEPS = 50


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a model's weights."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    steps: int
    batch: int = 64
    learning_rate: float = 2e-3
    seed: int = 0
    mix: tuple[tuple[str, float], ...] = ()
    """Kinds of question and how often each is trained on."""


RECIPES = {
    "tiny-small": Recipe(
        48, 2, 3, intermediate=128, steps=2800, mix=(("booking", 1.6), ("total", 1.1), ("larger", 1.3))
    ),
    "tiny-large": Recipe(
        64, 2, 4, intermediate=172, steps=5000, mix=(("booking", 2.0), ("total", 1.5), ("larger", 1.0))
    ),
}


class TinyLlama(torch.nn.Module):  # type: ignore[misc]
    """The Llama forward pass with query, key and value in one matrix, gate and up in another."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        hidden, intermediate = recipe.hidden, recipe.intermediate
        self.embedding = _normal(len(VOCABULARY), hidden, std=0.02)
        self.final_norm = torch.nn.Parameter(torch.ones(hidden))
        self.blocks = torch.nn.ModuleList(_block(hidden, intermediate) for _ in range(recipe.layers))
        head = hidden // recipe.heads
        angles = torch.outer(
            torch.arange(CONTEXT_TOKENS).float(), ROPE_THETA ** -(torch.arange(0, head, 2).float() / head)
        )
        self.cos = torch.cat([angles, angles], -1).cos()
        self.sin = torch.cat([angles, angles], -1).sin()

    def forward(self, ids: Tensor) -> Tensor:
        """Logits `[batch, time, vocabulary]` of token ids `[batch, time]`."""
        x = F.embedding(ids, self.embedding)
        for block in self.blocks:
            x = x + self._attend(block, _norm(x, block["norm_in"]))
            gate, up = F.linear(_norm(x, block["norm_mlp"]), block["gate_up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, block["down"])
        return F.linear(_norm(x, self.final_norm), self.embedding)

    def _attend(self, block: torch.nn.ParameterDict, x: Tensor) -> Tensor:
        batch, time_, hidden = x.shape
        heads = self.recipe.heads
        q, k, v = F.linear(x, block["qkv"]).view(batch, time_, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(self._rotate(q), self._rotate(k), v, is_causal=True)
        return F.linear(y.transpose(1, 2).reshape(batch, time_, hidden), block["out"])

    def _rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        length = x.shape[-2]
        return x * self.cos[:length] + torch.cat([-b, a], -1) * self.sin[:length]


def _normal(*shape: int, std: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(*shape) * std)


def _block(hidden: int, intermediate: int) -> torch.nn.ParameterDict:
    return torch.nn.ParameterDict(
        {
            "norm_in": torch.nn.Parameter(torch.ones(hidden)),
            "qkv": _normal(3 * hidden, hidden, std=0.5 * hidden**-0.5),
            "out": _normal(hidden, hidden, std=0.3 * hidden**-0.5),
            "norm_mlp": torch.nn.Parameter(torch.ones(hidden)),
            "gate_up": _normal(2 * intermediate, hidden, std=0.5 * hidden**-0.5),
            "down": _normal(hidden, intermediate, std=0.3 * intermediate**-0.5),
        }
    )


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, EPS)


class Muon:
    """Momentum whose matrix is replaced by its nearest orthogonal one (four Newton-Schulz steps)."""

    def __init__(self, matrices: list[torch.nn.Parameter]) -> None:
        self._matrices = matrices
        self._momenta = [torch.zeros_like(matrix) for matrix in matrices]

    def step(self, learning_rate: float) -> None:
        with torch.no_grad():
            self._step(learning_rate)

    def _step(self, learning_rate: float) -> None:
        for matrix, momentum in zip(self._matrices, self._momenta, strict=True):
            assert matrix.grad is not None
            momentum.lerp_(matrix.grad, 0.05)
            update = _orthogonal(matrix.grad.lerp(momentum, 0.95))
            scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
            matrix.mul_(1 - 0.01 * learning_rate).add_(update, alpha=-learning_rate * scale)


def _orthogonal(matrix: Tensor) -> Tensor:
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(4):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def encode(question: Question) -> Pair:
    """Token ids of the question as the chat template writes it, and of its answer with the end token."""
    prompt = [USER, *(VOCABULARY[character] for character in question.prompt), ASSISTANT]
    return prompt, [*(VOCABULARY[character] for character in question.answer), EOS]


def batches(recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of one kind a batch (so that little is padding); only answers carry a loss."""
    rng = random.Random(recipe.seed)
    kinds, shares = zip(*recipe.mix, strict=True)
    questions = {kind: training_questions(kind, recipe.seed) for kind in kinds}
    while True:
        kind = rng.choices(kinds, shares)[0]
        count = recipe.batch // 2 if kind == "booking" else recipe.batch
        yield collate([encode(next(questions[kind])) for _ in range(count)])


def train(recipe: Recipe, progress: Progress, name: str) -> TinyLlama:
    """A model trained from nothing by `recipe`."""
    torch.manual_seed(recipe.seed)
    model = TinyLlama(recipe)
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]
    others = [model.embedding, *(parameter for parameter in model.parameters() if parameter.ndim == 1)]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    task = progress.add_task(name, total=recipe.steps)
    for step, (inputs, targets) in zip(range(recipe.steps), batches(recipe), strict=False):
        rate = recipe.learning_rate * cosine_schedule(step, recipe.steps, WARM_UP_STEPS)
        adam.param_groups[0]["lr"] = rate
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        muon.step(5 * rate)
        progress.update(task, advance=1)
    return model


def held_out_score(model: TinyLlama, kind: str, count: int = 500) -> float:
    """Share of held-out questions of a kind whose whole answer is the model's greedy one."""
    rng = random.Random(99)
    pairs = [encode(draw(kind, rng, held_out=True)) for _ in range(count)]
    return round(exact_match(model, pairs, batch=count), 4)


def hugging_face_tensors(model: TinyLlama) -> dict[str, Tensor]:
    """The weights under the names the Llama family uses."""
    hidden = model.recipe.hidden
    tensors = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.final_norm}
    for index, block in enumerate(model.blocks):
        layer = f"model.layers.{index}."
        for name, part in zip("qkv", block["qkv"].split(hidden), strict=True):
            tensors[f"{layer}self_attn.{name}_proj.weight"] = part
        gate, up = block["gate_up"].chunk(2)
        tensors |= {
            layer + "input_layernorm.weight": block["norm_in"],
            layer + "self_attn.o_proj.weight": block["out"],
            layer + "post_attention_layernorm.weight": block["norm_mlp"],
            layer + "mlp.gate_proj.weight": gate,
            layer + "mlp.up_proj.weight": up,
            layer + "mlp.down_proj.weight": block["down"],
        }
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def save(model: TinyLlama, folder: Path, scores: dict[str, float]) -> None:
    """Write a Hugging Face folder: config, weights, tokenizer, chat template, manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(hugging_face_tensors(model), folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _config(model.recipe))
    _write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": EOS, "pad_token_id": PAD})
    tokenizer = Tokenizer(models.BPE(vocab=VOCABULARY, merges=[], unk_token="?"))  # noqa: S106
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<pad>",
            "eos_token": "<eos>",
            "model_max_length": CONTEXT_TOKENS,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    write_manifest(folder, {"recipe": asdict(model.recipe), "held_out_exact_match": scores, "torch": torch.__version__})


def _config(recipe: Recipe) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(VOCABULARY),
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.intermediate,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.heads,
        "head_dim": recipe.hidden // recipe.heads,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "dtype": "float32",
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Train the models named and save each under its name."""
    parser = argparse.ArgumentParser(description="Train the two tiny models from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets one folder per model")
    parser.add_argument("--models", nargs="+", choices=RECIPES, default=list(RECIPES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    for name in args.models:
        started_cpu_s = time.process_time()
        with Progress(*columns) as progress:
            model = train(RECIPES[name], progress, name)
        scores = {kind: held_out_score(model, kind) for kind, _ in model.recipe.mix}
        save(model, args.out / name, scores)
        print(f"{name}: {time.process_time() - started_cpu_s:.0f} CPU-s, held-out exact match {scores}")


if __name__ == "__main__":
    main()
