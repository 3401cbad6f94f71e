"""Reads the journal as logged rounds and as training data: feedback, automatic checks, propensities.

A round is a decision for a model, with the probabilities at that time and the outcome of the whole request: score,
cost, latency. The score comes from feedback; where there is none, a failed automatic check (no answer, invalid schema,
a tool call that doesn't parse, a refusal, the user repeating the question) gives 0. So that bad answers are not scored
more often than good ones, a failed check only counts with the probability with which answers get feedback at all. On a
route without any feedback every answer is scored by its checks alone, if most answers were checked; otherwise none is,
because an answer without a fault need not be good.

Left out: cache hits, requests that the client broke off, choices without a propensity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from gateway.journal.recent import PAGE_ROWS, Place, last_scored, place_of, read_back
from gateway.journal.record import DecisionRecord
from gateway.journal.vectors import unpacked, vector_bytes
from gateway.learn.rounds import drawn_of, failed_check, is_round, was_checked
from gateway.wire.pass_through import PASSED
from routers.features import Featurizer, shipped_featurizer, shipped_version
from routers.ope import Array, Rounds
from routers.outcomes import Outcomes

RETRY_WITHIN_S = 120.0
"""A question that is repeated within so many seconds means that its answer was bad."""

MAIN_AXES = 24
"""Principal axes that are computed once per log."""

Scored = tuple[DecisionRecord, float | None]


@dataclass(frozen=True)
class Log:
    """n rounds over m models, oldest first."""

    records: tuple[DecisionRecord, ...]
    models: tuple[str, ...]
    x: NDArray[np.float32]
    """Query vectors, (n, d); d is 0 where a round has none of this build's version."""
    action: NDArray[np.intp]
    logged: Array
    """Probabilities at decision time, (n, m)."""
    score: Array
    """(n,), NaN where it is unknown."""
    cost_usd: Array
    latency_s: Array
    left_out: int = 0
    """Number of decisions that are no rounds."""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Whether each round has a score."""
        return np.isfinite(self.score)

    def rows(self, kept: NDArray[np.bool_] | NDArray[np.intp]) -> Log:
        """The log of these rounds only."""
        places = np.arange(len(self))[kept]
        return replace(
            self, records=tuple(self.records[i] for i in places.tolist()), x=self.x[places],
            action=self.action[places], logged=self.logged[places], score=self.score[places],
            cost_usd=self.cost_usd[places], latency_s=self.latency_s[places],
        )  # fmt: skip

    def since(self, time_s: float) -> Log:
        """Rounds after that Unix time."""
        return self.rows(np.array([record.time_s > time_s for record in self.records], bool))

    def until(self, time_s: float) -> Log:
        """Rounds up to that Unix time."""
        return self.rows(np.array([record.time_s <= time_s for record in self.records], bool))

    def always(self, j: int) -> Array:
        """Probabilities (n, m) of a policy that always chooses the model in column j."""
        target = np.zeros((len(self), len(self.models)))
        target[:, j] = 1.0
        return target

    def rounds(self, reward: Array) -> Rounds:
        """The rounds for off-policy evaluation. `reward`: score, cost or latency, or computed from them; NaN: unknown.
        """
        known = np.isfinite(reward)
        if known.all():
            return Rounds(self.action, reward, self.logged)
        return Rounds(self.action, np.where(known, reward, 0.0), self.logged, known)

    def covariates(self, dims: int = MAIN_AXES) -> Array:
        """Inputs of the reward model: the vectors' first `dims` principal axes and the prompt's length, standardised.
        """
        tokens = np.log1p([record.input_tokens for record in self.records])[:, None]
        z = np.concatenate([self._axes[:, :dims], tokens], 1)
        return np.asarray((z - z.mean(0)) / np.maximum(z.std(0), 1e-9))

    @cached_property
    def _axes(self) -> Array:
        return main_axes(self.x.astype(np.float64), MAIN_AXES) if self.x.shape[1] else np.zeros((len(self), 0))

    def mean_cost_usd(self) -> Array:
        """Mean cost of the rounds in which each model was chosen, (m,); NaN where no cost is known."""
        known = np.isfinite(self.cost_usd)
        counts = np.bincount(self.action[known], minlength=len(self.models))
        total = np.bincount(self.action[known], self.cost_usd[known], len(self.models))
        return np.asarray(np.where(counts > 0, total / np.maximum(counts, 1), np.nan))


def main_axes(x: Array, dims: int) -> Array:
    """The rows projected on approximately their `dims` leading principal axes, by subspace iteration, which takes a
    hundredth of the time of a full decomposition.
    """
    centred = x - x.mean(0)
    basis = np.random.default_rng(0).normal(size=(x.shape[1], min(dims + 8, *x.shape)))
    for _ in range(4):
        basis = centred.T @ (centred @ basis)
        values, turn = np.linalg.eigh(basis.T @ basis)
        least = max(1e-12 * float(values.max()), 1e-30)  # all rows may be equal
        basis = basis @ (turn / np.sqrt(np.maximum(values, least)))
    scores = centred @ basis
    values, turn = np.linalg.eigh(scores.T @ scores)
    return np.asarray(scores @ turn[:, np.argsort(-values)[:dims]])


class NothingLogged(ValueError):
    """There is no round to learn from; the message says what there is."""


def read_log(
    engine: sa.Engine, *, route: str, since_s: float = 0.0, limit: int = 20_000, featurizer: Featurizer | None = None
) -> Log:
    """The route's latest rounds: at most `limit` up to the latest scored one, and at most `limit` after it, so that
    late scores are not missed. Raises NothingLogged.
    """
    earlier, later = list[Scored](), list[Scored]()  # both with the newest first
    before: Place | None = None
    while len(earlier) < 2 * limit:
        leaps = not earlier and len(later) >= 2 * limit  # older ones only matter once one is scored
        if leaps and (before := last_scored(engine, route, before, since_s)) is None:
            break
        page = read_back(engine, route, before, min(PAGE_ROWS, 2 * limit - len(earlier)), since_s, including=leaps)
        if not page:
            break
        before = place_of(page[-1])
        decided = [(record, score) for record, score in page if record.surface not in PASSED]
        fresh = 0 if earlier else next((i for i, (_, score) in enumerate(decided) if score is not None), len(decided))
        later = [*later, *decided[:fresh]][: 2 * limit]
        earlier += decided[fresh:]
    if not earlier:
        return log_of(later[::-1], limit=limit, featurizer=featurizer)
    later = later[:limit]
    return log_of([*earlier[::-1], *later[::-1]], limit=limit + len(later), featurizer=featurizer)


def log_of(decisions: Sequence[Scored], *, limit: int = 20_000, featurizer: Featurizer | None = None) -> Log:
    """The log of decisions, which must be in the order of time. Raises NothingLogged."""
    labelled = scored_by_checks(decisions)
    kept = [(record, score) for record, score in labelled if is_round(record)][-limit:]
    if not kept:
        raise NothingLogged(f"{len(decisions)} request(s) in the journal, none with a choice and a propensity")
    records = tuple(record for record, _ in kept)
    models = tuple(sorted({one.model for record in records for one in record.candidates}))
    place = {model: j for j, model in enumerate(models)}
    logged = np.zeros((len(records), len(models)))
    for i, record in enumerate(records):
        for one in record.candidates:
            logged[i, place[one.model]] = one.probability
    return Log(
        records=records,
        models=models,
        x=_vectors(records, featurizer),
        action=np.array([place[record.model] for record in records], np.intp),
        logged=logged,
        score=np.array([np.nan if score is None else score for _, score in kept]),
        cost_usd=np.array([record.cost_nanousd / 1e9 for record in records]),
        latency_s=np.array([record.latency_s if record.latency_s is not None else np.nan for record in records]),
        left_out=len(decisions) - len(kept),
    )


def scored_by_checks(decisions: Sequence[Scored]) -> list[Scored]:
    """Every decision with its score, from feedback or else from automatic checks, as the module's docstring describes.
    """
    again = _asked_again([record for record, _ in decisions])
    failed = [bool(failed_check(record)) or i in again for i, (record, _) in enumerate(decisions)]
    unscored = [i for i, (_, score) in enumerate(decisions) if score is None]
    if len(unscored) == len(decisions):
        asked = [record for record, _ in decisions if record.attempts]
        if sum(map(was_checked, asked)) < len(asked) / 2:
            return list(decisions)
        return [(record, 0.0 if bad else 1.0) for (record, _), bad in zip(decisions, failed, strict=True)]
    sound = [i for i, bad in enumerate(failed) if not bad]
    share = sum(decisions[i][1] is not None for i in sound) / max(len(sound), 1)
    scored = list(decisions)
    for i in unscored:
        if failed[i] and drawn_of(decisions[i][0].id) < share:
            scored[i] = (decisions[i][0], 0.0)
    return scored


def _asked_again(records: Sequence[DecisionRecord]) -> set[int]:
    """Places of the decisions whose question the same caller repeated within `RETRY_WITHIN_S`."""
    latest: dict[tuple[str, str, bytes], int] = {}
    found: set[int] = set()
    for i, record in enumerate(records):
        what = record.prompt_text.encode() or vector_bytes(record)
        if not what:
            continue
        who = (record.tenant, record.key_id, hashlib.sha256(what).digest())
        before = latest.get(who)
        if before is not None and record.time_s - records[before].time_s <= RETRY_WITHIN_S:
            found.add(before)
        latest[who] = i
    return found


def _vectors(records: Sequence[DecisionRecord], featurizer: Featurizer | None) -> NDArray[np.float32]:
    """The recorded vectors, or those of the stored texts; no columns where a record has neither."""
    version = featurizer.version if featurizer else shipped_version()
    rows = [_vector(record, version, featurizer) for record in records]
    if any(row is None for row in rows):
        return np.zeros((len(records), 0), np.float32)
    return np.array(rows, np.float32)


def _vector(record: DecisionRecord, version: str, featurizer: Featurizer | None) -> NDArray[np.float32] | None:
    if record.vector and record.features_version == version:
        return unpacked(record)
    if not record.prompt_text:
        return None
    return (featurizer or shipped_featurizer()).describe(
        record.prompt_text, input_tokens=record.input_tokens, turns=record.turns or 1, tools=record.tools,
        images=record.images, wants_json=record.wants_json,
    ).vector  # fmt: skip


def training_data(log: Log) -> tuple[Outcomes, Array]:
    """The scored rounds as outcomes with one known cell per row, and their vectors.

    The score of an answer by another model than the chosen one (a cascade's later rung, a fallback) counts for the
    model that answered.
    """
    kept = log.rows(log.labelled)
    models = tuple(
        sorted(set(log.models) | {record.answered_model for record in kept.records if record.answered_model})
    )
    place = {model: j for j, model in enumerate(models)}
    shape = (len(kept), len(models))
    cells = {name: np.full(shape, np.nan) for name in ("score", "cost", "input", "output", "latency", "chance")}
    for i, record in enumerate(kept.records):
        j = place[record.answered_model or record.model]
        answer = next((one for one in reversed(record.attempts) if one.model == models[j]), None)
        cells["score"][i, j] = kept.score[i]
        cells["chance"][i, j] = record.propensity if record.propensity is not None else np.nan
        if answer is not None and not answer.failure:
            cells["cost"][i, j] = answer.cost_nanousd / 1e9
            cells["output"][i, j] = answer.usage.get("output", 0) + answer.usage.get("reasoning", 0)
            cells["input"][i, j] = record.input_tokens
            cells["latency"][i, j] = np.nan if answer.latency_s is None else answer.latency_s
    data = Outcomes(
        query_ids=tuple(record.id for record in kept.records),
        texts=tuple(record.prompt_text for record in kept.records),
        tasks=tuple(record.route for record in kept.records),
        splits=np.array(["train"] * len(kept)),
        models=models,
        scores=cells["score"], cost_usd=cells["cost"], checked_cost_usd=cells["cost"], input_tokens=cells["input"],
        output_tokens=cells["output"], latency_s=cells["latency"], confidence=np.full(shape, np.nan),
        propensity=cells["chance"],
    )  # fmt: skip
    return data, kept.x.astype(np.float64)


def one_sided(log: Log) -> str:
    """A message where all scores of a partly scored log are equal, so that models can't be compared; else empty."""
    scores = log.score[log.labelled]
    if not 0 < len(scores) < len(log) or scores.min() != scores.max():
        return ""
    return f"every scored answer has the score {scores[0]:g}: score good and bad ones, else models can't be compared"


def halves_of_queries(log: Log, share: float = 0.5) -> NDArray[np.bool_]:
    """Whether each round is in the first half, by a hash of its query, so that equal queries are on the same side."""
    return np.array([drawn_of(_key(record)) < share for record in log.records], bool)


def _key(record: DecisionRecord) -> str:
    return record.prompt_text or vector_bytes(record).hex() or record.id


def log_of_outcomes(data: Outcomes, featurizer: Featurizer | None = None) -> Log:
    """Outcome data with one answer per query and its propensity, as a log. Such data has no probabilities of the models
    that were not chosen: these are assumed to share the rest equally. Raises NothingLogged where no propensity is
    known.
    """
    observed = np.isfinite(data.scores) & np.isfinite(data.propensity)
    if not observed.any():
        raise NothingLogged("outcomes.parquet: no score with a propensity")
    kept = np.flatnonzero(observed.any(1))
    action = observed[kept].argmax(1)
    chance = data.propensity[kept, action]
    rest = (1.0 - chance) / (len(data.models) - 1)
    logged = np.tile(rest[:, None], len(data.models))
    logged[np.arange(len(kept)), action] = chance
    described = [(featurizer or shipped_featurizer()).describe(data.texts[i]) for i in kept.tolist()]
    records = tuple(
        DecisionRecord(
            id=data.query_ids[i], time_s=0.0, model=data.models[j], features_version=query.features_version,
            input_tokens=query.input_tokens, turns=1, prompt_text=data.texts[i],
        )
        for i, j, query in zip(kept.tolist(), action.tolist(), described, strict=True)
    )  # fmt: skip
    return Log(
        records, data.models, np.array([query.vector for query in described], np.float32), action, logged,
        data.scores[kept, action], data.cost_usd[kept, action], data.latency_s[kept, action],
        len(data.query_ids) - len(kept),
    )  # fmt: skip
