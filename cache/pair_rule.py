"""Whether two questions need the same answer, learned from labelled pairs: boosted trees over their words and their
cosine.

A cosine alone is a poor criterion (of Quora's pairs at .95 an eighth are different questions). More informative is how
rare the rarest words are that both questions have, and that only one has. The trees are fitted by scikit-learn and
evaluated here by numpy, all at once; including the words that takes some 0.3 ms. A route's semantic cache uses the
score as one more feature of its own learned rule, so that the bound on false hits stays with its audits. A file of
another form and vectors of another embedder are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import crc32
from zlib import error as zlib_error

import numpy as np
from numpy.typing import NDArray

from cache.guard import contradiction, names
from cache.judge import Floats
from cache.words import QUESTION_WORDS, Vocabulary, wording_of

Pair = tuple[str, str, bool]
Places = NDArray[np.intp]
FORM = 1
_ENDINGS = ("ing", "ed", "es", "s", "ly")
_OPENERS = {word: number for number, word in enumerate(sorted(QUESTION_WORDS), 1)}
_RAREST = 3
_FOLDS = 5
_SURE = 15.0
"""Largest absolute value of a score, in logits."""
_TREES, _RATE, _LEAVES, _DEPTH, _LEAST, _L2, _FEATURES = 400, 0.03, 31, 9, 20, 5.0, 0.5
_BAGS, _BAG = 5, 0.8
"""Hyperparameters, chosen on inner splits of the training pairs. The ranking of a single model depends on chance
(rounding of cosines alone moves the share at a precision of .90 by .003), so several models, each fitted to other
pairs, are averaged.
"""


@dataclass(frozen=True, slots=True)
class Trees:
    """Boosted regression trees, with the nodes of all of them in one array; a leaf is its own child."""

    roots: Places
    feature: Places
    threshold: Floats
    child: Places
    """Children of node n: `child[2 n]`, and above the threshold `child[2 n + 1]`."""
    value: Floats
    """Value of a leaf; 0 for inner nodes."""
    depth: int
    offset: float

    def __call__(self, features: list[float]) -> float:
        """The sum of the leaves that one row of features ends in."""
        seen, at = np.array(features), self.roots
        for _ in range(self.depth):
            past = seen.take(self.feature.take(at)) > self.threshold.take(at)
            at = self.child.take(2 * at + past)
        return self.offset + float(self.value.take(at).sum())


@dataclass(frozen=True, slots=True)
class PairRule:
    """A rule learned from pairs, for the vectors of one embedder."""

    trees: Trees
    vocabulary: Vocabulary
    embedder: str

    def score(self, asked: str, held: str, cosine: float) -> float:
        """The logit of the probability that two questions want one answer; within -15 and 15."""
        return min(_SURE, max(-_SURE, self.trees(describe(asked, held, cosine, self.vocabulary))))

    def save(self, file: Path) -> None:
        """Write the rule to a file, atomically."""
        trees, (words, counts, texts) = self.trees, self.vocabulary.counts()
        part = file.with_suffix(".part.npz")
        np.savez_compressed(
            part, form=FORM, roots=trees.roots, feature=trees.feature, threshold=trees.threshold, child=trees.child,
            value=trees.value, depth=trees.depth, offset=trees.offset, words=np.array(words, np.str_),
            counts=np.array(counts, np.int64), texts=texts, embedder=self.embedder,
        )  # fmt: skip
        part.replace(file)

    @classmethod
    def load(cls, file: Path) -> PairRule:
        """Read what `save` wrote. Raises ValueError for any other content, and OSError where there is no file."""
        try:
            with np.load(file, allow_pickle=False) as kept:
                found = {name: kept[name] for name in kept.files}
            if int(found["form"]) != FORM:
                raise ValueError(f"its form is {int(found['form'])}, not {FORM}")
            trees = _whole(found)
            counts = dict(zip(found["words"].tolist(), found["counts"].tolist(), strict=True))
            return cls(trees, Vocabulary.of(counts, int(found["texts"])), str(found["embedder"]))
        except (KeyError, TypeError, EOFError, ValueError, IndexError, BadZipFile, zlib_error) as error:
            raise ValueError(f"{file} is no pair rule: {error}") from None


def _whole(found: Mapping[str, NDArray[Any]]) -> Trees:
    """The trees of a file. Raises ValueError for nodes that point outside the arrays."""
    roots, feature, child = (found[name].astype(np.intp) for name in ("roots", "feature", "child"))
    threshold, value, depth = found["threshold"], found["value"], int(found["depth"])
    if not len(feature) == len(threshold) == len(value) == len(child) / 2 or not 0 < depth < 64:
        raise ValueError("its arrays don't fit together")
    for places, end in ((roots, len(value)), (child, len(value)), (feature, N_FEATURES)):
        if not len(places) or places.min() < 0 or places.max() >= end:
            raise ValueError("its trees have branches to nowhere")
    if not (np.isfinite(value).all() and np.isfinite(threshold).all()):
        raise ValueError("its trees have leaves without a number")
    return Trees(roots, feature, threshold, child, value, depth, float(found["offset"]))


def describe(asked: str, held: str, cosine: float, vocabulary: Vocabulary) -> list[float]:
    """Features of a pair of questions, (N_FEATURES,); `vocabulary` tells which words are rare."""
    one, other = wording_of(asked), wording_of(held)
    there = vocabulary.compare(one, other, dict.fromkeys(other.content, 3))
    back = vocabulary.compare(other, one, dict.fromkeys(one.content, 3))
    stems, others = {_stem(word): word for word in one.content}, {_stem(word): word for word in other.content}
    ours = _rarest(vocabulary, [word for stem, word in stems.items() if stem not in others], _RAREST)
    theirs = _rarest(vocabulary, [word for stem, word in others.items() if stem not in stems], _RAREST)
    named, named_there = names(asked), names(held)
    longest = max(len(one.tokens), len(other.tokens), 1)
    first, last = _same(one.tokens, other.tokens), _same(one.tokens[::-1], other.tokens[::-1])
    return [
        cosine,
        float(contradiction(asked, held, one, other) is not None),
        *there[:9],
        *(mine + yours for mine, yours in zip(there[9:], back[9:], strict=True)),
        *map(min, ours, theirs),
        *map(max, ours, theirs),
        *_rarest(vocabulary, list(one.content & other.content), 2),
        first / longest,
        last / longest,
        float(last),
        len(one.tokens) + len(other.tokens),
        len(named & named_there),
        len(named ^ named_there),
        *sorted((_OPENERS.get(one.opener, 0), _OPENERS.get(other.opener, 0))),
        len(stems.keys() & others.keys()) / max(len(stems.keys() | others.keys()), 1),
        len(one.content & other.content),
        len(one.content ^ other.content),
        abs(asked.count("?") - held.count("?")),
        abs(len(asked) - len(held)) / max(len(asked), len(held), 1),
    ]


def _stem(word: str) -> str:
    """A word without its ending, roughly."""
    for ending in _ENDINGS:
        if len(word) > len(ending) + 3 and word.endswith(ending):
            return word[: -len(ending)]
    return word


def _rarest(vocabulary: Vocabulary, words: list[str], n: int) -> list[float]:
    """The rarities of the `n` rarest words, zeros where there are fewer."""
    found = sorted(map(vocabulary.rarity, words), reverse=True)[:n]
    return [*found, *[0.0] * (n - len(found))]


def _same(one: list[str], other: list[str]) -> int:
    """The number of equal tokens with which two lists begin."""
    differ = (n for n, (mine, yours) in enumerate(zip(one, other, strict=False)) if mine != yours)
    return next(differ, min(len(one), len(other)))


N_FEATURES = len(describe("a", "b", 0.0, Vocabulary()))


def fit_pair_rule(pairs: list[Pair], cosines: Floats, *, embedder: str, seed: int = 0) -> PairRule:
    """Learn from labelled pairs and the cosines of their vectors. ValueError for fewer than ten of either kind."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    right = np.array([pair[2] for pair in pairs], bool)
    if min(right.sum(), (~right).sum()) < 10:
        raise ValueError("too few pairs of either kind to learn from")
    vocabulary = _learnt(pairs)
    rows = _described(pairs, cosines)
    models = []
    for bag in range(_BAGS):
        kept = _bag(right, seed + bag)
        model = HistGradientBoostingClassifier(
            max_iter=_TREES, learning_rate=_RATE, max_leaf_nodes=_LEAVES, max_depth=_DEPTH, min_samples_leaf=_LEAST,
            l2_regularization=_L2, max_features=_FEATURES, early_stopping=False, random_state=seed + bag,
        )  # fmt: skip
        models.append(model.fit(rows[kept], right[kept]))
    rule = PairRule(_walkable(models), vocabulary, embedder)
    expected: Floats = np.mean([model.decision_function(rows[:100]) for model in models], axis=0)
    if not np.allclose([rule.trees(row.tolist()) for row in rows[:100]], expected, atol=1e-4):
        raise RuntimeError("the trees were not read as scikit-learn wrote them")
    return rule


def _bag(right: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """Four fifths of the pairs of either kind."""
    rank = np.random.default_rng(seed).random(len(right))
    kept = np.zeros(len(right), bool)
    for kind in (right, ~right):
        kept[np.flatnonzero(kind)[np.argsort(rank[kind])[: ceil(_BAG * kind.sum())]]] = True
    return kept


def groups(pairs: list[Pair]) -> list[str]:
    """For each pair, the name of the group of all questions that some chain of pairs joins to its own."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while parent.setdefault(text, text) != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    for one, other, _ in pairs:
        parent[root(one)] = root(other)
    return [root(one) for one, _, _ in pairs]


def _described(pairs: list[Pair], cosines: Floats) -> Floats:
    """Every pair's features by the words of other questions than its own, as it will be when it is new."""
    fold = [crc32(group.encode()) % _FOLDS for group in groups(pairs)]
    rows: Floats = np.zeros((len(pairs), N_FEATURES))
    for held in range(_FOLDS):
        vocabulary = _learnt([pair for pair, number in zip(pairs, fold, strict=True) if number != held])
        for row in [row for row, number in enumerate(fold) if number == held]:
            rows[row] = describe(*pairs[row][:2], float(cosines[row]), vocabulary)
    return rows


def _learnt(pairs: list[Pair]) -> Vocabulary:
    vocabulary = Vocabulary()
    for one, other, _ in pairs:
        vocabulary.learn(wording_of(one))
        vocabulary.learn(wording_of(other))
    return vocabulary


def _walkable(models: Sequence[Any]) -> Trees:
    """The mean of scikit-learn's models, as plain arrays."""
    grown = [stage[0].nodes for model in models for stage in model._predictors]
    roots: Places = np.cumsum([0, *map(len, grown[:-1])])
    nodes = np.concatenate(grown)
    first, own, leaf = np.repeat(roots, list(map(len, grown))), np.arange(len(nodes)), nodes["is_leaf"].astype(bool)
    ways = [np.where(leaf, own, first + nodes[side].astype(np.intp)) for side in ("left", "right")]
    return Trees(
        roots=roots,
        feature=np.where(leaf, 0, nodes["feature_idx"]).astype(np.intp),
        threshold=np.where(leaf, 0.0, nodes["num_threshold"]),
        child=np.column_stack(ways).ravel(),
        value=np.where(leaf, nodes["value"], 0.0) / len(models),
        depth=max(1, int(nodes["depth"].max())),
        offset=float(np.mean([np.ravel(model._baseline_prediction)[0] for model in models])),
    )
