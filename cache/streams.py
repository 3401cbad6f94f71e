"""Question streams with known answers, and what a semantic cache makes of them.

Two questions with one label want one answer; a question labelled `OUT_OF_SCOPE` wants an answer of its own.
The judge is the labels, made to err where a test of its correction asks for it.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cache.acceptance import Acceptance, AcceptanceOptions
from cache.entry import Entry
from cache.guard import Guard
from cache.index import FlatIndex
from cache.judge import JudgeError
from cache.key import Partition
from cache.memory import MemoryStore
from cache.pair_rule import Pair, groups
from cache.ranking import RankedIndex, Ranking
from cache.semantic import Miss, SemanticCache

OUT_OF_SCOPE = -1
_SPACE = b"one partition"


@dataclass(frozen=True, slots=True)
class Stream:
    """Questions, what answer each wants, and their vectors."""

    name: str
    texts: list[str]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a rule did with a stream in one order."""

    hit_share: float
    false_hit_rate: float
    """Wrong answers among hits, by the labels."""
    wrong_share: float
    """Wrong answers from the cache among all requests, which is what vCache's delta bounds."""
    audited_rate: float
    audited_high: float
    """The cache's own estimate of the false-hit rate, and its upper 97.5 % bound."""
    out_of_scope_hits: float
    """Share of out-of-scope questions that were answered from the cache."""
    out_of_scope_per_request: float
    judged_share: float
    judged_share_at_end: float
    """Judgements per request: over all requests, and over the last 2,000."""
    hit_share_at_end: float
    entries: int

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {name: round(value, 5) for name, value in asdict(self).items()}


def banking77(folder: Path) -> Stream:
    """13,083 questions to a bank, 77 intents (Casanueva et al. 2020)."""
    rows: list[dict[str, str]] = []
    for name in ("train.csv", "test.csv"):
        with (folder / "banking77" / name).open(newline="") as file:
            rows += csv.DictReader(file)
    return _stream("banking77", [row["text"] for row in rows], [row["category"] for row in rows])


def clinc150(folder: Path, *, in_scope: int = 11_200, out_of_scope: int = 800) -> Stream:
    """12,000 requests to an assistant, 150 intents, 800 of them out of scope (Larson et al. 2019)."""
    data: dict[str, list[list[str]]] = json.loads((folder / "clinc150" / "data_full.json").read_text())
    rows = [row for part in data.values() for row in part]
    rng = np.random.default_rng(0)
    inside = [row for row in rows if row[1] != "oos"]
    outside = [row for row in rows if row[1] == "oos"]
    chosen = [inside[i] for i in rng.permutation(len(inside))[:in_scope]]
    chosen += [outside[i] for i in rng.permutation(len(outside))[:out_of_scope]]
    return _stream("clinc150", [row[0] for row in chosen], [row[1] for row in chosen], outside="oos")


def qqp_pairs(folder: Path) -> list[Pair]:
    """Pairs of questions asked on Quora, and whether they were marked as duplicates."""
    with gzip.open(folder / "gptcache_qqp" / "qqp_pairs.tsv.gz", "rt") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    return [(row[0], row[1], row[2] == "1") for row in rows]


def qqp_clusters(folder: Path, *, least: int = 3) -> Stream:
    """The questions of duplicate clusters of at least `least`; unlabelled neighbours count as wrong."""
    alike = [pair for pair in qqp_pairs(folder) if pair[2]]
    cluster = {text: group for pair, group in zip(alike, groups(alike), strict=True) for text in pair[:2]}
    sizes = Counter(cluster.values())
    texts = sorted(text for text, group in cluster.items() if sizes[group] >= least)
    return _stream("qqp_clusters", texts, [cluster[text] for text in texts])


def _stream(name: str, texts: list[str], labels: list[str], outside: str = "") -> Stream:
    numbers = {label: n for n, label in enumerate(sorted(set(labels)))}
    if outside:
        numbers[outside] = OUT_OF_SCOPE
    return Stream(name, texts, np.array([numbers[label] for label in labels]))


class Oracle:
    """A judge that knows, and errs with probability `error`."""

    def __init__(self, error: float, rng: random.Random) -> None:
        self._error = error
        self._rng = rng

    def says(self, right: bool) -> bool:
        """The verdict on a cached answer."""
        return right != (self._rng.random() < self._error)

    def measured(self, pairs: int = 2000) -> JudgeError | None:
        """Its error, from `pairs` known equal and as many known different pairs."""
        if not self._error:
            return None
        same = [self.says(True) for _ in range(pairs)]
        return JudgeError.measured(same, [self.says(False) for _ in range(pairs)])


class _Tally:
    """Counts of one replay."""

    def __init__(self, stream: Stream, order: NDArray[np.int64]) -> None:
        self._outside = int((stream.labels[order] == OUT_OF_SCOPE).sum())
        self.n = len(order)
        self.hits = self.wrong = self.outside_hits = self.judged = 0
        self._tail = (0, 0)

    def count(self, step: int, *, hit: bool, right: bool, outside: bool) -> None:
        if step == self.n - 2000:
            self._tail = (self.hits, self.judged)
        self.hits += hit
        self.wrong += hit and not right
        self.outside_hits += hit and outside

    def figures(self, entries: int, audited: tuple[float, float] = (0.0, 1.0)) -> Figures:
        last = min(2000, self.n)
        return Figures(
            hit_share=self.hits / self.n,
            false_hit_rate=self.wrong / max(self.hits, 1),
            wrong_share=self.wrong / self.n,
            audited_rate=audited[0],
            audited_high=audited[1],
            out_of_scope_hits=self.outside_hits / max(self._outside, 1),
            out_of_scope_per_request=self.outside_hits / self.n,
            judged_share=self.judged / self.n,
            judged_share_at_end=(self.judged - self._tail[1]) / last,
            hit_share_at_end=(self.hits - self._tail[0]) / last,
            entries=entries,
        )


def replay(
    stream: Stream,
    ranking: Ranking,
    *,
    options: AcceptanceOptions,
    seed: int,
    judge_error: float = 0.0,
    guard: bool = True,
) -> Figures:
    """Ask a stream's questions in the order of `seed` and judge as the cache asks for it."""
    order = np.random.default_rng(seed).permutation(len(stream.texts))
    vectors, index = ranking.vectors, RankedIndex(ranking)
    oracle = Oracle(judge_error, random.Random(seed + 1))
    cache = SemanticCache(
        MemoryStore(1 << 20),
        dimension=vectors.shape[1],
        acceptance=Acceptance(options, random.Random(seed), oracle.measured()),
        guard=Guard() if guard else None,
        make_index=lambda _: index,
    )
    tally, labels = _Tally(stream, order), stream.labels

    def same(asked: int, entry_id: str) -> bool:
        return bool(labels[asked] == labels[int(entry_id)] != OUT_OF_SCOPE)

    for step, asked in enumerate(order.tolist()):
        question = Partition(_SPACE, stream.texts[asked])
        index.asked = asked
        outcome = cache.propose(question, vectors[asked], tenant="", now_s=0.0)
        if isinstance(outcome, Miss):
            entry = Entry(str(asked), "chat", b"", "", "", 0.0, 1.0, 0.0)
            cache.record(question, vectors[asked], entry, key=b"", miss=outcome)
            tally.count(step, hit=False, right=False, outside=False)
            comparison = outcome.comparison
        else:
            item, why = outcome
            right, outside = same(asked, item.entry_id), bool(labels[asked] == OUT_OF_SCOPE)
            tally.count(step, hit=True, right=right, outside=outside)
            comparison = why["comparison"]  # type: ignore[assignment]
        while comparison is not None:
            tally.judged += 1
            comparison = cache.audit(comparison.row, oracle.says(same(asked, comparison.entry_id)))
        cache.maintain()
    rate = cache.false_hit_rate()
    return tally.figures(len(cache), (rate.value, rate.high))


class HitRule(Protocol):
    """A rule over the nearest entry's cosine."""

    inserts_always: bool

    def serves(self, label: int, cosine: float) -> bool:
        """Whether the nearest entry is served."""
        ...

    def observe(self, label: int, cosine: float, right: bool) -> None:
        """Take in whether the nearest entry's answer was right."""
        ...


def replay_rule(stream: Stream, vectors: NDArray[np.float32], rule: HitRule, *, seed: int) -> Figures:
    """Ask a stream's questions of a cache that looks at the nearest entry only."""
    order = np.random.default_rng(seed).permutation(len(stream.texts))
    index, tally, labels = FlatIndex(vectors.shape[1]), _Tally(stream, order), stream.labels
    for step, asked in enumerate(order.tolist()):
        nearest, near = index.search(vectors[asked], 1)
        hit = right = False
        if nearest:
            right = bool(labels[asked] == labels[nearest[0]] != OUT_OF_SCOPE)
            hit = rule.serves(nearest[0], near[0])
        tally.count(step, hit=hit, right=right, outside=bool(labels[asked] == OUT_OF_SCOPE))
        if not hit:
            if nearest and not rule.inserts_always:
                tally.judged += 1
                rule.observe(nearest[0], near[0], right)
            if rule.inserts_always or not right:
                index.add(asked, vectors[asked])
    return tally.figures(len(index))
