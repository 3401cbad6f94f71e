"""Fine-tuning an encoder on outcomes, and serving it in the gateway."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer

from gateway.config.types import Embedding
from gateway.embedders import open_embedder
from local_models.finetune import FinetuningSettings, finetuned, read_rows, save_encoder
from tests.gateway.test_embedders import encoder

TEXTS = ("write a poem about the sea", "solve the sum of two")


def outcomes(folder: Path, n: int = 48) -> Path:
    """The small model is right on poems only; the last rows are for testing, and one score is missing."""
    folder.mkdir()
    ids = [f"q{i}" for i in range(n)]
    splits = ["train" if i < n - 8 else "test" for i in range(n)]
    pq.write_table(
        pa.table({"query_id": ids, "text": [TEXTS[i % 2] for i in range(n)], "split": splits}),
        folder / "queries.parquet",
    )
    rows = [
        (id, model, float(model == "large" or i % 2 == 0)) for i, id in enumerate(ids) for model in ("large", "small")
    ]
    id, model, score = zip(*rows[:-1], strict=True)
    pq.write_table(pa.table({"query_id": id, "model": model, "score": score}), folder / "outcomes.parquet")
    return folder


def test_training_rows_alone_are_read(tmp_path: Path) -> None:
    """Test rows aren't used, and a missing score is a gap."""
    rows = read_rows(outcomes(tmp_path / "data"))
    assert len(rows.texts) == 40 and rows.scores.shape == (40, 2)
    assert torch.isfinite(rows.scores).all()


def test_a_fine_tuned_encoder_separates_what_models_separate(tmp_path: Path) -> None:
    """The loss falls, and the folder is served like any other, with vectors that are further apart than before."""
    source, target = encoder(tmp_path / "encoder"), tmp_path / "tuned"
    losses: list[float] = []
    scorer = finetuned(
        read_rows(outcomes(tmp_path / "data")), source, FinetuningSettings(epochs=20, rate=3e-3),
        lambda _, loss: losses.append(loss),
    )  # fmt: skip
    save_encoder(scorer, source, target)
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    likeness = []
    for folder in (source, target):
        read = open_embedder(Embedding(kind="folder", path=str(folder)))
        assert read is not None
        likeness.append(float(read.embed(TEXTS[0]) @ read.embed(TEXTS[1])))
    assert likeness[1] < likeness[0] - 0.05


def test_the_served_encoder_equals_the_trained_one(tmp_path: Path) -> None:
    """The gateway's numpy encoder gives the vectors of the trained one."""
    source, target = encoder(tmp_path / "encoder"), tmp_path / "tuned"
    scorer = finetuned(read_rows(outcomes(tmp_path / "data")), source, FinetuningSettings())
    save_encoder(scorer, source, target)
    served = open_embedder(Embedding(kind="folder", path=str(target)))
    assert served is not None
    ids = Tokenizer.from_file(str(target / "tokenizer.json")).encode(TEXTS[0]).ids
    with torch.no_grad():
        expected = scorer.vectors({"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))})[
            0
        ].numpy()
    assert np.allclose(served.embed(TEXTS[0]), expected, atol=1e-4)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    """An encoder that couldn't be served isn't trained."""
    folder = encoder(tmp_path / "e", model_type="gpt2")
    with pytest.raises(ValueError, match="BERT"):
        finetuned(read_rows(outcomes(tmp_path / "data")), folder, FinetuningSettings())
