"""The evaluation reads the published formats of its data sets and reports what it measured."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cache.evaluate import load_embedder, main, vectors_of
from cache.pairs import judge_pairs, share_at_precision
from cache.streams import OUT_OF_SCOPE, banking77, clinc150, qqp_clusters

CALLS: list[str] = []


def embed(text: str) -> NDArray[np.float32]:
    """Counts of letters: a vector without a model."""
    CALLS.append(text)
    return np.array([text.count(letter) + 0.1 for letter in "abcdefghijklmnopqrstuvwxyz "], np.float32)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Tiny data sets in the published formats."""
    topics = ["card lost", "card stolen", "top up", "exchange rate", "new pin", "close account"]
    rows = [
        (f"{topic} {word}", topic) for topic in topics for word in ["now", "please", "today", "again", "help", "soon"]
    ]
    for name in ("banking77", "clinc150", "gptcache_qqp"):
        (tmp_path / name).mkdir()
    for name, part in (("train.csv", rows[::2]), ("test.csv", rows[1::2])):
        with (tmp_path / "banking77" / name).open("w", newline="") as file:
            csv.writer(file).writerows([("text", "category"), *part])
    clinc = {"train": [list(row) for row in rows], "oos_test": [["sing a song", "oos"], ["who am i", "oos"]]}
    (tmp_path / "clinc150" / "data_full.json").write_text(json.dumps(clinc))
    pairs = [(one[0], other[0], int(one[1] == other[1])) for one in rows for other in rows[:12] if one != other]
    pairs += [(f"ask{n} a", f"ask{n} a now" if n % 3 else f"else{n} b", int(n % 3 > 0)) for n in range(200)]
    with gzip.open(tmp_path / "gptcache_qqp" / "qqp_pairs.tsv.gz", "wt") as out:
        out.write("text_a\ttext_b\tlabel\n" + "".join(f"{a}\t{b}\t{same}\n" for a, b, same in pairs))
    return tmp_path


def test_streams_are_read(data: Path) -> None:
    """Intents, out-of-scope questions and duplicate clusters become labels."""
    assert len(set(banking77(data).labels.tolist())) == 6
    assert (clinc150(data).labels == OUT_OF_SCOPE).sum() == 2
    clusters = qqp_clusters(data)
    assert len(set(clusters.labels.tolist())) == 2 and len(clusters.texts) == 12


def test_the_command_reports(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON has every stream and the pairs, with the rules and the baselines, and vectors are cached on disk."""
    CALLS.clear()
    words = ["--data", str(data), "--embedder", f"{__name__}:embed", "--vectors", str(data / "v"), "--json"]
    main([*words, "--orders", "2", "--judge-error", "0.03"])
    made = len(CALLS)
    report = json.loads(capsys.readouterr().out)
    assert {"banking77", "clinc150", "qqp_clusters", "qqp_pairs"} <= report.keys()
    learned = report["banking77"]["learned, eps 0.03"]
    assert learned["orders"] == 2 and learned["bound_held"] == 1.0
    assert report["banking77"]["static 0.8"]["hit_share"] > 0
    for row in report["banking77"].values():
        assert row["orders"] == 2 and row["hit_share_half_width"] >= 0
        assert row["wrong_share"] <= row["hit_share"]
    assert "vCache, delta 0.02" in report["clinc150"]
    main([*words, "--streams", "banking77", "--no-baselines", "--orders", "1"])
    assert len(CALLS) == made > 0


def test_unknown_embedders_are_refused() -> None:
    """An embedder that is neither a folder nor a function is refused by its name."""
    with pytest.raises(SystemExit, match="embedder"):
        load_embedder("nonsense")


def test_vectors_are_of_unit_length() -> None:
    """Vectors are normalised to length 1, whatever an embedder returns."""
    made = vectors_of(["abc", "z"], embed, "letters", None)
    assert np.allclose(np.linalg.norm(made, axis=1), 1)


def test_pairs_are_learnt_on_other_questions(data: Path) -> None:
    """Pairs are learned on other questions than they are measured on, and the share served at a precision is that of
    the best scores.
    """
    assert share_at_precision(np.array([4.0, 3, 2, 1]), np.array([True, True, False, True]), 0.7) == 1.0
    assert share_at_precision(np.array([1.0, 2]), np.array([True, False]), 0.9) == 0.0
    pairs = [(f"ask{n} a", f"ask{n} a now" if n % 3 else f"else{n} b", n % 3 > 0) for n in range(800)]
    vectors = {text: embed(text) for pair in pairs for text in pair[:2]}
    assert judge_pairs(pairs, vectors, seed=0).learned_auc > 0.9
