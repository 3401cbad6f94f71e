"""A small model taught a big one's logged answers, for a narrow route that asks the same kind of thing all day.

FrugalGPT's approximation of a model by a smaller one (Chen et al. 2023, section 3). Rows whose split is test are never
learnt from: on them the student is compared with its teacher before anybody serves it. Refuses folders without enough
answers.

    python -m local_models.imitate --data DIR --teacher large --student FOLDER --out FOLDER

What it writes is a model folder like any other: named in a `local` provider's `models`, it is a rung.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from torch.nn import functional

from local_models.manifest import MANIFEST, write_manifest
from local_models.text import TextCodec
from local_models.training import IGNORED, OnStep, Pair, collate, cosine_schedule, exact_match

LEAST_ROWS = 100
WARM_UP_STEPS = 20


@dataclass(frozen=True, slots=True)
class Answered:
    """Questions with the teacher's answers."""

    train: list[tuple[str, str]]
    held_out: list[tuple[str, str]]
    """Never trained on."""


@dataclass(frozen=True, slots=True)
class DistillationSettings:
    steps: int = 400
    batch: int = 32
    rate: float = 1e-3
    seed: int = 0


def read_answers(folder: Path, teacher: str) -> Answered:
    """The teacher's answers in outcome data that are not known to be wrong. ValueError where they are too few."""
    queries = pyarrow.parquet.read_table(folder / "queries.parquet").to_pydict()
    table = pyarrow.parquet.read_table(folder / "outcomes.parquet")
    if "response" not in table.column_names:
        raise ValueError(f"{folder}: outcomes.parquet holds no responses to learn from")
    rows = table.select(["query_id", "model", "response", "score"]).to_pylist()
    said = {
        row["query_id"]: row["response"]
        for row in rows
        if row["model"] == teacher and row["response"] and not (row["score"] is not None and row["score"] < 0.5)
    }
    splits = queries.get("split") or [""] * len(queries["text"])
    found = Answered([], [])
    for id, text, split in zip(queries["query_id"], queries["text"], splits, strict=True):
        if id in said:
            (found.held_out if split == "test" else found.train).append((text, said[id]))
    if len(found.train) < LEAST_ROWS:
        raise ValueError(f"{folder}: {len(found.train)} answers of {teacher!r} to learn from; {LEAST_ROWS} are needed")
    return found


def encoded(codec: TextCodec, end: int, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """Questions and answers as token ids, as the engine will read and write them."""
    return [
        (codec.encode_chat([{"role": "user", "content": question}]), [*codec.encode(answer), end])
        for question, answer in pairs
    ]


def train(model: Any, pairs: Sequence[Pair], settings: DistillationSettings, on_step: OnStep) -> None:
    """Train the model in place; causal attention makes padding on the right harmless."""
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    for step in range(settings.steps):
        places = torch.randint(len(pairs), (min(settings.batch, len(pairs)),), generator=generator).tolist()
        inputs, targets = collate([pairs[place] for place in places])
        logits = model(input_ids=inputs).logits
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * cosine_schedule(step, settings.steps, WARM_UP_STEPS)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        on_step(step, loss.item())
    model.eval()


def imitate(
    answered: Answered,
    student: Path,
    out: Path,
    settings: DistillationSettings,
    on_step: OnStep = lambda step, loss: None,
) -> dict[str, float]:
    """Write the trained student to `out`. Returns the share of held-out questions on which it answers as its teacher
    did, before and after the training; NaN where none was held out.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(settings.seed)
    codec = TextCodec(student)
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).eval()
    ends = model.generation_config.eos_token_id
    end = ends[0] if isinstance(ends, list) else ends
    held = encoded(codec, end, answered.held_out)
    before = _exact_match(model, held)
    train(model, encoded(codec, end, answered.train), settings, on_step)
    found = {"before": before, "after": _exact_match(model, held)}
    shutil.copytree(student, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, "*.safetensors*"))
    model.save_pretrained(out)
    write_manifest(out, {"imitates": asdict(settings), "rows": len(answered.train), "held_out_alike": found})
    return found


def _exact_match(model: Any, pairs: Sequence[Pair]) -> float:
    return exact_match(lambda ids: model(input_ids=ids).logits, pairs)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local_models.imitate", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="outcome data with responses")
    parser.add_argument("--teacher", required=True, help="model whose answers are learnt")
    parser.add_argument("--student", type=Path, required=True, help="model folder to start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args()
    answered = read_answers(args.data, args.teacher)

    def print_loss(step: int, loss: float) -> None:
        if step % 50 == 49:
            print(f"step {step + 1}: loss {loss:.4f}", flush=True)

    settings = DistillationSettings(steps=args.steps, rate=args.rate)
    found = imitate(answered, args.student, args.out, settings, print_loss)
    print(json.dumps({"out": str(args.out), "learnt": len(answered.train), "held": len(answered.held_out), **found}))


if __name__ == "__main__":
    main()
