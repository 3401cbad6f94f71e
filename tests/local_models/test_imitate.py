"""Teaching a shipped model another one's answers, and serving the result."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from local_models import shipped_models
from local_models.engine import Engine, EngineOptions
from local_models.imitate import DistillationSettings, imitate, read_answers
from local_models.manifest import verify_manifest
from tests.local_models.checkpoints import codec, greedy, run


def answers(folder: Path, n: int = 150, **columns: list[Any]) -> Path:
    """A teacher that always answers with the last number, which the student was never trained to do."""
    rng = random.Random(0)
    folder.mkdir()
    ids = [f"q{place}" for place in range(n)]
    texts = [f"larger of {rng.randrange(10)} and {rng.randrange(10)}?" for _ in ids]
    splits = ["train" if place < n - 20 else "test" for place in range(n)]
    pq.write_table(pa.table({"query_id": ids, "text": texts, "split": splits}), folder / "queries.parquet")
    said: dict[str, list[Any]] = {"response": [text[:-1].split()[-1] for text in texts], "score": [None] * n, **columns}
    outcomes = {"query_id": ids, "model": ["teacher"] * n} | {name: values for name, values in said.items() if values}
    pq.write_table(pa.table(outcomes, schema=_schema(outcomes)), folder / "outcomes.parquet")
    return folder


def _schema(columns: dict[str, list[Any]]) -> pa.Schema:
    kinds = {"score": pa.float64()}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in columns])


def test_the_student_answers_as_its_teacher(tmp_path: Path) -> None:
    """That holds for new questions after a short training; the engine serves the folder."""
    learnt = read_answers(answers(tmp_path / "data"), "teacher")
    assert (len(learnt.train), len(learnt.held_out)) == (130, 20)
    small, out, losses = shipped_models()["tiny-small"], tmp_path / "student", list[float]()
    found = imitate(learnt, small, out, DistillationSettings(steps=60), lambda step, loss: losses.append(loss))
    assert found["after"] > found["before"] and found["after"] >= 0.8 and losses[-1] < losses[0]
    assert verify_manifest(out) and json.loads((out / "manifest.json").read_text())["rows"] == 130
    engine = Engine.load(out, EngineOptions(kv_tokens=256))
    hits = 0
    for place, (question, said) in enumerate(learnt.held_out):
        prompt = codec().encode_chat([{"role": "user", "content": question}])
        hits += codec().decode(list(run(engine, [greedy(str(place), prompt, 1)])[str(place)].ids)) == said
    assert hits / len(learnt.held_out) >= found["after"] - 0.05


def test_wrong_answers_are_not_learned(tmp_path: Path) -> None:
    """A score below .5 excludes an answer; too few answers, or none, are refused."""
    scores: list[object] = [0.0 if place % 10 == 0 else 1.0 for place in range(150)]
    assert len(read_answers(answers(tmp_path / "a", score=scores), "teacher").train) == 117
    with pytest.raises(ValueError, match="0 answers of 'nobody'"):
        read_answers(tmp_path / "a", "nobody")
    with pytest.raises(ValueError, match="no responses"):
        read_answers(answers(tmp_path / "b", response=[]), "teacher")
