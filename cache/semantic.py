"""The semantic cache: answers questions with the answers of similar ones, with a bounded share of wrong answers among
the hits.

A look-up stays within its partition (tenant, scope, model and all of the request but its last user text). The nearest
entries vote for an answer, a lexical guard may veto it, and the learned rule of the route accepts it or not. The index
here only proposes: a hit is served only if the store still has the entry, so whatever is deleted there is gone here
too. The caller does the judging: a miss or a hit may carry a `Comparison`, whose verdict is passed to `audit`, off the
critical path.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache.acceptance import NEVER, Acceptance, Rate
from cache.classes import AnswerClass
from cache.entry import Entry, Hit
from cache.guard import Guard
from cache.index import ExternalIndex, FlatIndex, Index, Vector
from cache.ivf import IvfIndex
from cache.key import Partition
from cache.neighbours import Item, Neighbours, features, vote
from cache.pair_rule import PairRule
from cache.store import Store
from cache.words import Vocabulary, Wording, wording_of

if TYPE_CHECKING:
    from cache.vector_sets import VectorSets

_NEAREST = 8
_FLOOR = 0.5
"""Least cosine of a candidate."""
_PROVISIONAL = 0.8
"""An unjudged miss of at least this score is put into its best class until a verdict says otherwise."""
_MERGE_VOTE = 0.2
"""Where the second class has at least this share of the votes, a right answer leads to the question whether both
classes are one.
"""
_FLAT_LIMIT = 4096
"""The most entries of a partition that are searched in full; a larger one gets an inverted file."""
_MAX_PENDING = 10_000
_MAX_TEXT = 4_000
"""The most characters of a question; a longer one is assumed to paraphrase nothing."""
_GUARD = Guard()


OnVerdict = Callable[[list[float], bool, float, bool], None]
"""Called with (features, right, weight, audited) for each row learned here, to tell the other replicas."""

OnForgotten = Callable[[bytes, str], None]
"""Called with (partition, entry id) when an entry is no longer proposed."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to be judged equal or not: the one now given and `entry_id`'s, under `key`."""

    row: int
    """Number to pass to `audit` with the verdict."""
    entry_id: str
    key: bytes
    tenant: str


@dataclass(frozen=True, slots=True)
class Miss:
    """Why nothing was served, and what to do with the new answer."""

    why: str
    """unlearnt | bound | unproven | score | vector | text | empty | far | gone, or what a guard objects to: script,
    number, sign, negation, polarity, kind, direction, entity. Whoever looks up has words beside.
    """
    comparison: Comparison | None = None
    """The comparison of the new answer with a cached one, to be judged once the new answer is recorded."""
    score: float = 0.0
    similarity: float = 0.0
    least: float | None = None
    """The score that would have been enough; None where no score was compared."""
    recordable: bool = True
    likely: AnswerClass | None = None
    """The class the new answer is taken for, until a verdict says otherwise."""


@dataclass(slots=True)
class _PendingVerdict:
    """A comparison whose verdict is awaited."""

    weight: float
    audited: bool
    features: list[float]
    best: AnswerClass
    second: Item | None
    item: Item | None = None
    merging: bool = False


@dataclass(slots=True)
class _PartitionIndex:
    """The index of one partition."""

    index: Index
    tenant: str


class SemanticCache:
    """The semantic tier of one route."""

    def __init__(
        self,
        store: Store,
        *,
        dimension: int,
        acceptance: Acceptance | None = None,
        guard: Guard | None = _GUARD,
        pair_rule: PairRule | None = None,
        max_entries: int = 100_000,
        make_index: Callable[[int], Index] = FlatIndex,
        sets: VectorSets | None = None,
        on_verdict: OnVerdict | None = None,
        on_forgotten: OnForgotten | None = None,
    ) -> None:
        """With `sets` the vectors are in Redis: whoever records an entry also adds it there, and `on_forgotten` tells
        what to remove.
        """
        if dimension < 1 or max_entries < 1:
            raise ValueError("dimension and max_entries must be positive")
        self.acceptance = acceptance or Acceptance()
        self._store = store
        self._dimension = dimension
        self._max_entries = max_entries
        self._guard = guard
        self._on_verdict = on_verdict
        self._make_index = make_index if sets is None else ExternalIndex
        self._sets = sets
        self._on_forgotten = on_forgotten
        self._pair_rule = pair_rule
        self._partitions: dict[bytes, _PartitionIndex] = {}
        self._items: OrderedDict[int, Item] = OrderedDict()
        """Items by label, least recently used first."""
        self._labels: dict[str, int] = {}
        self._tenants: dict[str, set[int]] = {}
        self._next_label = 0
        self._vocabulary = Vocabulary()
        self._pending: OrderedDict[int, _PendingVerdict] = OrderedDict()
        self._next_row = 0

    def __len__(self) -> int:
        return len(self._items)

    def questions(self) -> dict[str, str]:
        """The questions in words, by entry id."""
        return {item.entry_id: item.text for item in self._items.values()}

    async def look_up(
        self, question: Partition, vector: NDArray[np.floating], *, tenant: str, now_s: float
    ) -> Hit | Miss:
        """Answer a question from the entries around it, or say why not."""
        near = None
        if self._sets is not None:
            near = await self._sets.near(question.key, np.asarray(vector, np.float32), _NEAREST)
        proposed = self.propose(question, vector, tenant=tenant, now_s=now_s, near=near)
        if isinstance(proposed, Miss):
            return proposed
        item, why = proposed
        entry = await self._store.get(item.key, tenant=tenant, now_s=now_s)
        if entry is None or entry.id != item.entry_id:
            self._forget(item)
            return Miss("gone")
        similarity = why["similarity"]
        return Hit(entry, "semantic", float(similarity) if isinstance(similarity, float) else 0.0, why)

    def propose(
        self,
        question: Partition,
        vector: NDArray[np.floating],
        *,
        tenant: str,
        now_s: float,
        near: list[tuple[str, float]] | None = None,
    ) -> tuple[Item, dict[str, object]] | Miss:
        """The item whose answer would be served, and why it may; or the miss. `near`: entry ids and cosines, nearest
        first, where another index than the partition's own was searched.
        """
        unit = self._unit(vector)
        if unit is None:
            return Miss("vector", recordable=False)
        asked = wording_of(question.text)
        if not asked.content or len(question.text) > _MAX_TEXT:
            return Miss("text", recordable=False)
        if near is None:
            found = self._around(question.key, unit, tenant, now_s)
        else:
            found = self._known(near, question.key, tenant, now_s)
        outcome = self._decide(question.text, asked, found)
        self.acceptance.count(hit=not isinstance(outcome, Miss))
        return outcome

    def record(
        self,
        question: Partition,
        vector: NDArray[np.floating],
        entry: Entry,
        *,
        key: bytes,
        miss: Miss | None = None,
    ) -> None:
        """Remember that `entry`, stored under `key`, answers this question; `miss`: what its look-up said."""
        unit = self._unit(vector)
        if unit is None or (miss is not None and not miss.recordable) or entry.id in self._labels:
            return
        partition = self._partitions.get(question.key)
        if partition is None:
            partition = _PartitionIndex(self._make_index(self._dimension), entry.tenant)
            self._partitions[question.key] = partition
        if partition.tenant != entry.tenant:
            return
        wording = wording_of(question.text)
        self._next_label += 1
        expires_s = entry.created_s + entry.ttl_s
        item = Item(self._next_label, entry.id, key, entry.tenant, question.key, question.text, expires_s)
        self._settle(item, wording, miss)
        if isinstance(partition.index, FlatIndex) and len(partition.index) >= _FLAT_LIMIT:
            partition.index = IvfIndex(partition.index)
        partition.index.add(item.label, unit)
        self._items[item.label] = item
        self._labels[entry.id] = item.label
        self._tenants.setdefault(entry.tenant, set()).add(item.label)
        self._vocabulary.learn(wording)
        while len(self._items) > self._max_entries:
            self._forget(next(iter(self._items.values())))

    def audit(self, row: int, right: bool | None) -> Comparison | None:
        """Take a verdict (None: nobody could tell); the comparison returned, if any, is worth judging too (same new
        answer).
        """
        pending = self._pending.pop(row, None)
        if pending is None or right is None:
            return None
        item = pending.item
        if pending.merging:
            assert pending.second is not None
            (AnswerClass.merge if right else AnswerClass.tell_apart)(pending.best, pending.second.answer_class)
            return None
        if pending.features:
            asked = item.answer_class if item is not None else None
            self.acceptance.learn(pending.features, right, pending.weight, audited=pending.audited, asked=asked)
            if self._on_verdict is not None:
                self._on_verdict(pending.features, right, pending.weight, pending.audited)
        pending.best.root().count(right)
        if item is None or not right:
            return None
        item.belong(pending.best.root(), wording_of(item.text))
        return self._ask_merge(pending)

    def delete(self, entry_id: str, *, tenant: str | None = None) -> bool:
        """Stop proposing an entry, and count it against its class: somebody found it wrong."""
        label = self._labels.get(entry_id)
        if label is None or (tenant is not None and self._items[label].tenant != tenant):
            return False
        self._items[label].answer_class.count(False)
        self._forget(self._items[label])
        return True

    def delete_tenant(self, tenant: str) -> None:
        """Stop proposing a tenant's entries."""
        for label in list(self._tenants.get(tenant, ())):
            self._forget(self._items[label])

    def false_hit_rate(self) -> Rate:
        """The audited rate of wrong answers among hits, with its 95 % interval."""
        return self.acceptance.false_hit_rate()

    def maintain(self) -> None:
        """Refit the rule when it is due; best in another thread."""
        if self.acceptance.due:
            self.acceptance.refit()

    def _unit(self, vector: NDArray[np.floating]) -> Vector | None:
        """The vector at length one; None for one of another dimension, of no length or with NaN in it."""
        unit = np.asarray(vector, np.float32)
        if unit.shape != (self._dimension,):
            return None
        length = float(np.sqrt(unit @ unit))
        return np.divide(unit, length) if 1e-6 < length < 1e6 else None

    def _around(self, key: bytes, unit: Vector, tenant: str, now_s: float) -> Neighbours | None:
        partition = self._partitions.get(key)
        if partition is None or partition.tenant != tenant:
            return None
        labels, near = partition.index.search(unit, _NEAREST)
        items = [self._items[label] for label in labels]
        stale = [item for item in items if item.expires_s <= now_s]
        if stale:
            for item in stale:
                self._forget(item)
            return self._around(key, unit, tenant, now_s)
        return vote(items, near, partition.index.gather(labels)) if items else None

    def _known(self, near: list[tuple[str, float]], key: bytes, tenant: str, now_s: float) -> Neighbours | None:
        """The entries found elsewhere whose words are known here, of this partition and tenant."""
        found = [(self._items[self._labels[name]], cosine) for name, cosine in near if name in self._labels]
        items = []
        for item, cosine in found:
            if item.expires_s <= now_s:
                self._forget(item)
            elif item.partition == key and item.tenant == tenant:
                items.append((item, cosine))
        return vote([item for item, _ in items], [cosine for _, cosine in items]) if items else None

    def _decide(self, text: str, asked: Wording, found: Neighbours | None) -> tuple[Item, dict[str, object]] | Miss:
        if found is None:
            return Miss("empty")
        if found.near[0] < _FLOOR:
            return Miss("far", similarity=float(found.near[0]))
        chosen = self._unguarded(text, asked, found)
        item, cosine, held, objection = chosen
        pair_score = self._pair_rule.score(text, item.text, cosine) if self._pair_rule is not None else 0.0
        seen = features(found, cosine, asked, held, self._vocabulary, _NEAREST, pair_score=pair_score)
        score, unproven = self.acceptance.score(seen), found.best.right == 0
        if objection or not self.acceptance.accepts(score, unproven):
            weight = self.acceptance.draw_miss(score, unproven)
            row = self._await_verdict(found, item, [] if objection else seen, weight) if weight else None
            likely = found.best if not (row or objection) and score >= _PROVISIONAL else None
            why = objection or self._short_of(unproven)
            least = self.acceptance.least(unproven) if why == "score" else None
            return Miss(why, row, score, cosine, least, likely=likely)
        self._items.move_to_end(item.label)
        weight = self.acceptance.draw_audit()
        row = self._await_verdict(found, item, seen, weight, audited=True) if weight else None
        return item, {"entry": item.entry_id, **self._why(found, cosine, score, row)}

    def _unguarded(self, text: str, asked: Wording, found: Neighbours) -> tuple[Item, float, Wording, str]:
        """The nearest item of the best class that no guard objects to; else the nearest, and why not."""
        first: tuple[Item, float, Wording, str] | None = None
        for item, cosine in found.of_best():
            held = wording_of(item.text)
            objection = self._guard.objection(text, item.text, asked, held) if self._guard else None
            if objection is None:
                return item, cosine, held, ""
            first = first or (item, cosine, held, objection)
        assert first is not None
        return first

    def _short_of(self, unproven: bool) -> str:
        fitted = self.acceptance.fitted
        if fitted is None:
            return "unlearnt"
        if fitted.least(unproven) < NEVER:
            return "score"
        return "unproven" if unproven and fitted.serves else "bound"

    def _why(self, found: Neighbours, cosine: float, score: float, comparison: Comparison | None) -> dict[str, object]:
        fitted = self.acceptance.fitted
        assert fitted is not None
        return {
            "similarity": cosine,
            "score": score,
            "threshold": fitted.least(found.best.right == 0),
            "bound": fitted.upper,
            "eps": self.acceptance.options.eps,
            "version": fitted.version,
            "vote": found.best_vote,
            "class_size": found.best.size,
            "comparison": comparison,
        }

    def _await_verdict(
        self, found: Neighbours, item: Item, seen: list[float], weight: float, *, audited: bool = False
    ) -> Comparison:
        close = found.second is not None and found.second_vote >= _MERGE_VOTE
        second = found.first_of(found.second) if close and found.second is not None else None
        return self._pend(_PendingVerdict(weight, audited, seen, found.best, second), item)

    def _pend(self, pending: _PendingVerdict, item: Item) -> Comparison:
        self.acceptance.judgements += 1
        self._next_row += 1
        self._pending[self._next_row] = pending
        if len(self._pending) > _MAX_PENDING:
            self._pending.popitem(last=False)
        return Comparison(self._next_row, item.entry_id, item.key, item.tenant)

    def _ask_merge(self, judged: _PendingVerdict) -> Comparison | None:
        second = judged.second
        if second is None or second.label not in self._items or not judged.best.may_be(second.answer_class):
            return None
        return self._pend(_PendingVerdict(0.0, False, [], judged.best, second, merging=True), second)

    def _settle(self, item: Item, wording: Wording, miss: Miss | None) -> None:
        """Put a new item into its class: one of its own unless its score says better."""
        pending = self._pending.get(miss.comparison.row) if miss is not None and miss.comparison else None
        if pending is not None:
            pending.item = item
        if miss is not None and miss.likely is not None:
            item.belong(miss.likely, wording)
        else:
            item.answer_class.join(wording)

    def _forget(self, item: Item) -> None:
        if self._items.pop(item.label, None) is None:
            return
        del self._labels[item.entry_id]
        item.answer_class.part(wording_of(item.text))
        mine = self._tenants[item.tenant]
        mine.discard(item.label)
        if not mine:
            del self._tenants[item.tenant]
        partition = self._partitions[item.partition]
        partition.index.remove(item.label)
        if not len(partition.index):
            del self._partitions[item.partition]
        if self._on_forgotten is not None:
            self._on_forgotten(item.partition, item.entry_id)
