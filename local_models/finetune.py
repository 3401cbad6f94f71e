"""Fine-tunes a sentence encoder on outcomes, for routers that read it through `[embedding] kind = "folder"`.

RouteLLM's BERT and CARROT's RoBERTa predict each model's score from the whole encoder; here the heads are thrown away
and the encoder kept, as a sentence-transformers folder: routers are then trained upon its vectors as upon any others,
with costs, knobs and propensities as they are. Training rows alone are read. Refuses encoders that are no BERT.

    python -m local_models.finetune --data DIR --encoder FOLDER --out FOLDER
    headgate train --data DIR --router ensemble --embedding headgate.toml
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from safetensors.torch import save_file

from local_models.training import OnStep

MAX_TOKENS = 256
KEPT = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "modules.json",
    "special_tokens_map.json", "sentence_bert_config.json", "config_sentence_transformers.json",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """Texts and the scores of each model on them, NaN where nobody knows."""

    texts: list[str]
    scores: torch.Tensor


@dataclass(frozen=True, slots=True)
class FinetuningSettings:
    epochs: int = 1
    batch: int = 16
    rate: float = 2e-5
    """Learning rate of the encoder; that of the heads is twenty times as high."""
    seed: int = 0


def read_rows(folder: Path) -> LabelledTexts:
    """The rows of outcome data whose split is not test. ValueError where there are none."""
    queries = pyarrow.parquet.read_table(folder / "queries.parquet").to_pydict()
    outcomes = pyarrow.parquet.read_table(
        folder / "outcomes.parquet", columns=["query_id", "model", "score"]
    ).to_pydict()
    splits = queries.get("split") or ["train"] * len(queries["text"])
    place = {
        id: row
        for row, id in enumerate(id for id, split in zip(queries["query_id"], splits, strict=True) if split != "test")
    }
    texts = [text for text, split in zip(queries["text"], splits, strict=True) if split != "test"]
    models = {name: column for column, name in enumerate(sorted(set(outcomes["model"])))}
    if not texts:
        raise ValueError(f"{folder}: no row to train on")
    scores = torch.full((len(texts), len(models)), float("nan"))
    for id, model, score in zip(outcomes["query_id"], outcomes["model"], outcomes["score"], strict=True):
        if id in place and score is not None:
            scores[place[id], models[model]] = float(score)
    return LabelledTexts(texts, scores)


class Scorer(torch.nn.Module):  # type: ignore[misc]  # torch is not typed here
    """The encoder's mean vector, of unit length, and one logistic head per model."""

    def __init__(self, encoder: Any, models: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = torch.nn.Linear(encoder.config.hidden_size, models)

    def vectors(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = self.encoder(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None].to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = self.heads(self.vectors(batch) * 8.0)
        return logits


def loss_of(logits: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Log loss over the known cells; scores between 0 and 1 count as probabilities."""
    known = torch.isfinite(scores)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits[known], scores[known])


def finetuned(
    rows: LabelledTexts, encoder: Path, settings: FinetuningSettings, on_step: OnStep = lambda step, loss: None
) -> Scorer:
    """The encoder trained on the rows, with its heads. ValueError where the folder holds no BERT."""
    from tokenizers import Tokenizer
    from transformers import AutoConfig, AutoModel

    if AutoConfig.from_pretrained(encoder).model_type != "bert":
        raise ValueError(f"{encoder}: only a BERT can be fine-tuned and served here")
    torch.manual_seed(settings.seed)
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    scorer = Scorer(AutoModel.from_pretrained(encoder), rows.scores.shape[1])
    base = rows.scores.nanmean(0).clamp(0.02, 0.98)
    with torch.no_grad():
        scorer.heads.weight.zero_()
        scorer.heads.bias.copy_(torch.logit(base))
    groups = [
        {"params": list(scorer.encoder.parameters()), "lr": settings.rate},
        {"params": list(scorer.heads.parameters()), "lr": 20 * settings.rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    order = [torch.randperm(len(rows.texts)).tolist() for _ in range(settings.epochs)]
    batches = [part[i : i + settings.batch] for part in order for i in range(0, len(part), settings.batch)]
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / (len(batches) + 1))
    scorer.train()
    for step, places in enumerate(batches):
        loss = loss_of(scorer(_read(tokenizer, [rows.texts[i] for i in places])), rows.scores[places])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimizer.step()
        falling.step()
        on_step(step, loss.item())
    scorer.eval()
    return scorer


def _read(tokenizer: Any, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Texts as token ids, as the gateway's encoder reads them, padded to the longest."""
    found = tokenizer.encode_batch(list(texts))
    return {
        "input_ids": torch.tensor([one.ids for one in found]),
        "attention_mask": torch.tensor([one.attention_mask for one in found]),
    }


def save_encoder(scorer: Scorer, source: Path, target: Path) -> None:
    """A sentence-transformers folder: the source's files, its new weights, mean pooling."""
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    weights = {name: value.contiguous() for name, value in scorer.encoder.state_dict().items()}
    save_file(
        {name: value for name, value in weights.items() if value.dtype == torch.float32}, target / "model.safetensors"
    )
    (target / "1_Pooling").mkdir(exist_ok=True)
    (target / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local_models.finetune", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=2e-5)
    args = parser.parse_args()
    rows = read_rows(args.data)
    seen: list[float] = []

    def print_loss(step: int, loss: float) -> None:
        seen.append(loss)
        if step % 20 == 19:
            print(f"step {step + 1}: loss {sum(seen[-20:]) / 20:.4f}", flush=True)

    scorer = finetuned(rows, args.encoder, FinetuningSettings(epochs=args.epochs, rate=args.rate), print_loss)
    save_encoder(scorer, args.encoder, args.out)
    print(f"{args.out}: {len(rows.texts)} rows, {rows.scores.shape[1]} models")


if __name__ == "__main__":
    main()
