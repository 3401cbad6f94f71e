"""A rule learned from labelled pairs: how well it separates them, how it is stored, and how the cache uses it."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from cache.entry import Entry
from cache.key import Partition
from cache.memory import MemoryStore
from cache.neighbours import FEATURES
from cache.pair_fit import main, read_pairs
from cache.pair_rule import Pair, PairRule, describe, fit_pair_rule
from cache.semantic import Miss, SemanticCache
from cache.words import Vocabulary
from tests.cache.test_evaluate import embed

TOPICS = ["alpha", "bravo", "carbon", "delta", "ember", "falcon", "garnet", "harbor"]


def labelled(n: int, seed: int = 0) -> list[Pair]:
    """Questions on random topics; two are labelled equal if they have the same topic."""
    rng = random.Random(seed)
    made = []
    for number in range(n):
        one = rng.choice(TOPICS)
        other = one if number % 2 else rng.choice([topic for topic in TOPICS if topic != one])
        made.append(
            (f"how do i use {one} case {number}", f"what is the way to use {other} case {number}", one == other)
        )
    return made


@pytest.fixture(scope="module")
def rule() -> PairRule:
    """A rule learned where cosines carry no information."""
    pairs = labelled(600)
    return fit_pair_rule(pairs, np.full(len(pairs), 0.8), embedder="letters")


def test_words_separate_what_cosines_do_not(rule: PairRule) -> None:
    """New pairs of known topics are told apart although all cosines are equal."""
    right = [(rule.score(one, other, 0.8) > 0) == same for one, other, same in labelled(200, seed=1)]
    assert np.mean(right) > 0.95


def test_a_stored_rule_is_read_back_whole(rule: PairRule, tmp_path: Path) -> None:
    """A file gives the same scores; a truncated, foreign or missing one is refused."""
    file = tmp_path / "rule.npz"
    rule.save(file)
    again = PairRule.load(file)
    assert again.embedder == "letters" and [path.name for path in tmp_path.iterdir()] == ["rule.npz"]
    for one, other, _ in labelled(50, seed=2):
        assert again.score(one, other, 0.7) == rule.score(one, other, 0.7)
    file.write_bytes(file.read_bytes()[:-200])
    for bad in (file, Path(__file__)):
        with pytest.raises(ValueError, match="no pair rule"):
            PairRule.load(bad)
    with pytest.raises(FileNotFoundError):
        PairRule.load(tmp_path / "nothing.npz")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("form", 99),
        ("depth", 0),
        ("child", np.array([10**6])),
        ("feature", np.array([-1])),
        ("value", np.array([np.nan])),
    ],
)
def test_malformed_trees_are_refused(rule: PairRule, tmp_path: Path, name: str, value: object) -> None:
    """Every array of a file is checked before a tree is walked."""
    file = tmp_path / "rule.npz"
    rule.save(file)
    with np.load(file) as kept:
        arrays = dict(kept)
    if isinstance(value, np.ndarray):
        arrays[name] = arrays[name].copy()
        arrays[name].flat[0] = value[0]
    else:
        arrays[name] = np.array(value)
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match="no pair rule"):
        PairRule.load(file)


def test_the_order_of_a_pair_hardly_matters() -> None:
    """Only features that compare word by word depend on which question came first."""
    one, other = "how do i reset my pin?", "where can i reset a lost pin"
    there, back = describe(one, other, 0.9, Vocabulary()), describe(other, one, 0.9, Vocabulary())
    assert len(there) == len(back) and np.allclose(there, back)


def test_too_few_pairs_are_refused() -> None:
    """A handful of pairs teaches nothing, which is an error."""
    with pytest.raises(ValueError, match="too few"):
        fit_pair_rule(labelled(8), np.full(8, 0.5), embedder="")


def test_the_caches_rule_reads_the_pair_rules_score(rule: PairRule) -> None:
    """The pair rule's score of question and candidate is the last feature that the route's own rule learns from."""
    asked = {}

    def told(features: list[float], right: bool, weight: float, audited: bool) -> None:
        asked["features"] = features

    cache = SemanticCache(MemoryStore(1 << 20), dimension=2, pair_rule=rule, on_verdict=told)
    vector = np.array([1.0, 0.0], np.float32)
    held, question = (
        Partition(b"p", "how do i use carbon case 7"),
        Partition(b"p", "what is the way to use carbon case 7"),
    )
    cache.record(held, vector, Entry("1", "chat", b"{}", "m", "", 0.0, 1e9, 0.0), key=b"1")
    miss = cache.propose(question, vector, tenant="", now_s=1.0)
    assert isinstance(miss, Miss) and miss.comparison is not None
    cache.audit(miss.comparison.row, right=True)
    assert len(asked["features"]) == FEATURES
    assert asked["features"][-1] == rule.score(question.text, held.text, 1.0) > 0


def test_the_command_learns_and_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command reads labelled pairs, reports how well they are told apart, and writes a rule; a malformed line is
    named.
    """
    file, out = tmp_path / "pairs.tsv", tmp_path / "rule.npz"
    lines = [f"{one}\t{other}\t{int(same)}" for one, other, same in labelled(400)]
    file.write_text("\n".join(["one\tother\tsame", *lines]) + "\n")
    assert embed("a").shape == (27,)
    monkeypatch.setattr(sys, "argv", ["pair_fit", str(file), str(out), "--embedder", "tests.cache.test_evaluate:embed"])
    main()
    report = json.loads(capsys.readouterr().out)
    assert report["pairs"] == 400 and report["on_other_questions"]["learned_auc"] > 0.9
    assert PairRule.load(out).embedder == report["embedder"]
    file.write_text("one\tother\tsame\n" + "a\tb\n")
    with pytest.raises(ValueError, match="line 2"):
        read_pairs(file)
    with pytest.raises(SystemExit, match="line 2"):
        main()
