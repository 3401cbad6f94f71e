"""Damaged data, artefacts and folders: one line says what to do, and what was there before stays."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from routers.artifact import ArtifactError, load_artifact, save_artifact
from routers.registry import DEFAULT_ARTIFACT, load_router
from tests.command import headgate
from tests.gateway.learn.folders import write_folder

FULL = (
    "import resource, signal\n"
    "from gateway.__main__ import main\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    "main()\n"
)


def changed(folder: Path, name: str, column: str, value: object) -> Path:
    """The folder with one column set to a single value."""
    table = pq.read_table(write_folder(folder, 60) / f"{name}.parquet").to_pydict()
    pq.write_table(pa.table({**table, column: [value] * len(table["query_id"])}), folder / f"{name}.parquet")
    return folder


def test_training_explains_a_model_without_scores(tmp_path: Path) -> None:
    """This is the first export of a young journal, in which the other models were rarely asked."""
    data = write_folder(tmp_path / "data", 60)
    table = pq.read_table(data / "outcomes.parquet").to_pydict()
    first = [int(query[1:]) % 10 < 7 for query in table["query_id"]]
    kept = [not (model == "large" and train) for model, train in zip(table["model"], first, strict=True)]
    rows = {name: [one for one, keep in zip(column, kept, strict=True) if keep] for name, column in table.items()}
    pq.write_table(pa.table(rows), data / "outcomes.parquet")
    code, _, said = headgate("train", "--data", data, "--router", "linear", "--out", tmp_path / "r.safetensors")
    assert code == 2 and "model 'large' has no score on the training rows; score some of its answers" in said


def test_a_full_disk_leaves_the_old_artefact(tmp_path: Path) -> None:
    """The error names the file, and no partial file remains."""
    data, out = write_folder(tmp_path / "data", 60), tmp_path / "out" / "router.safetensors"
    out.parent.mkdir()
    words = ("train", "--data", data, "--router", "linear", "--out", out)
    assert headgate(*words)[0] == 0
    before = out.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr == f"{out}: File too large\n"
    assert out.read_bytes() == before and list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("place", [".", "nowhere/router.safetensors", "/proc/router.safetensors"])
def test_an_unwritable_output_is_refused_before_the_work(tmp_path: Path, place: str) -> None:
    """That holds even if the data is invalid, which is found only by reading it."""
    for words in (("train", "--out"), ("evaluate", "--plot"), ("cascade", "train", "--out")):
        code, _, said = headgate(*words, tmp_path / place, "--data", tmp_path / "nothing")
        assert code == 2 and len(said.splitlines()) == 1, said
        assert "is a folder" in said or "can't be written" in said


@pytest.mark.parametrize("name", ["frontier.zzz", "frontier"])
def test_an_unknown_picture_format_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    """The error names the known ones, even if the data is invalid."""
    for words in (("evaluate", "--data", tmp_path), ("batch", "plan", tmp_path / "nothing.jsonl")):
        code, _, said = headgate(*words, "--plot", tmp_path / name)
        assert code == 2 and len(said.splitlines()) == 1 and "must end in one of" in said and "svg" in said, said


def test_undefined_figures_are_null(tmp_path: Path) -> None:
    """If every answer is right there is no ranking to measure, and JSON has no NaN."""
    data = changed(tmp_path / "data", "outcomes", "score", 1.0)
    words = ("train", "--data", data, "--router", "linear", "--out", tmp_path / "r.safetensors", "--json")
    code, out, _ = headgate(*words)
    assert code == 0 and json.loads(out, parse_constant=pytest.fail)["metrics"]["auroc"] is None


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("split", "test", "none is left to train on"), ("cost_usd", float("inf"), r"cost_usd: inf is not in [0, inf)")],
)
def test_data_that_teaches_nothing_is_refused(tmp_path: Path, column: str, value: object, said: str) -> None:
    """The error says what is wrong with it."""
    name = "queries" if column == "split" else "outcomes"
    data = changed(tmp_path / "data", name, column, value)
    code, _, told = headgate("train", "--data", data, "--router", "linear", "--out", tmp_path / "r.safetensors")
    assert code == 2 and said in told and len(told.splitlines()) == 1


def test_an_artefact_of_another_release_is_refused(tmp_path: Path) -> None:
    """Its unknown parameters are named, and no worker ends because of it."""
    path = tmp_path / "other.safetensors"
    card, arrays = load_artifact(DEFAULT_ARTIFACT)
    quality = {**card.parameters["quality"], "of_the_future": 1}
    save_artifact(path, dataclasses.replace(card, parameters={**card.parameters, "quality": quality}), arrays)
    with pytest.raises(ArtifactError, match="this build can serve"):
        load_router(path)
