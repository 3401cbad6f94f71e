"""A town with two kinds of questions and three models, whose journal can be written without a gateway: every model's
quality on every kind is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gateway.journal.record import AttemptRecord, CandidateRecord, DecisionRecord, EvidenceRecord
from gateway.learn.dataset import Scored
from routers.features import shipped_featurizer
from routers.types import Candidate, Knobs, Query, Router

TRUTH: Mapping[str, Mapping[str, float]] = {
    "sum": {"small": 0.9, "middle": 0.9, "large": 0.92},
    "poem": {"small": 0.2, "middle": 0.5, "large": 0.95},
}
PRICE = {"small": 0.1, "middle": 0.5, "large": 2.0}
OUTPUT_TOKENS = 100
_SUBJECTS = ("the sea", "an old house", "spring rain", "a lost key", "the last train", "a quiet town", "my cat")
_MOODS = ("sad", "merry", "solemn", "wistful", "angry", "tender", "strange")


def candidates(models: Sequence[str] = ("small", "middle", "large")) -> list[Candidate]:
    return [Candidate(model, PRICE[model], 4 * PRICE[model]) for model in models]


@dataclass
class Town:
    """Asks questions in the order of time."""

    seed: int = 0
    truth: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: TRUTH)
    made: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def question(self) -> tuple[str, str]:
        """The kind and text of a question."""
        rng = self.rng
        if rng.random() < 0.5:
            a, b = rng.integers(10, 10_000, 2)
            return "sum", f"What is {a} + {b}? Answer with the number only."
        subject, mood = rng.choice(_SUBJECTS), rng.choice(_MOODS)
        return "poem", f"Write a {mood} poem of {rng.integers(2, 9)} lines about {subject}."

    def decisions(
        self, router: Router, n: int, *, knobs: Knobs | None = None, labelled: float = 1.0,
        models: Sequence[str] = ("small", "middle", "large"),
    ) -> list[Scored]:  # fmt: skip
        return [self.decide(router, knobs or Knobs(), models, labelled) for _ in range(n)]

    def decide(self, router: Router, knobs: Knobs, models: Sequence[str], labelled: float) -> Scored:
        kind, text = self.question()
        query = described(text)
        choice = router.choose(query, candidates(models), knobs, float(self.rng.random()))
        self.made += 1
        price = PRICE[choice.model]
        cost = round(1000 * price * (query.input_tokens + 4 * OUTPUT_TOKENS))
        latency = 0.1 + price
        answer = AttemptRecord(
            model=choice.model, latency_s=latency, status=200, cost_nanousd=cost,
            usage={"input": query.input_tokens, "output": OUTPUT_TOKENS},
            evidence=EvidenceRecord(output_tokens=OUTPUT_TOKENS),
        )  # fmt: skip
        expected = {one.model: one for one in choice.estimates}
        record = DecisionRecord(
            id=f"dec_{self.seed}_{self.made}", time_s=1e9 + 200.0 * self.made, route="auto", status=200,
            tenant="t", input_tokens=query.input_tokens, turns=1, features_version=query.features_version,
            vector=query.vector.astype("<f2").tobytes(),
            candidates=tuple(
                CandidateRecord(
                    model=model, probability=chance, quality=expected[model].quality if expected else None,
                    cost_usd=expected[model].cost_usd if expected else None,
                )
                for model, chance in choice.probabilities.items()
            ),
            model=choice.model, answered_model=choice.model, propensity=choice.propensity, router=choice.router,
            reason=choice.reason, attempts=(answer,), cost_nanousd=cost, latency_s=latency,
        )  # fmt: skip
        score = float(self.rng.random() < self.truth[kind][choice.model])
        return record, score if self.rng.random() < labelled else None

    def worth(self, router: Router, knobs: Knobs, n: int = 400) -> tuple[float, float]:
        """True mean quality and cost in dollars of a policy, exploration included."""
        quality = cost = 0.0
        town = Town(self.seed + 1000, self.truth)
        for _ in range(n):
            kind, text = town.question()
            query = described(text)
            for model, chance in router.choose(query, candidates(), knobs, 0.0).probabilities.items():
                quality += chance * self.truth[kind][model] / n
                cost += chance * PRICE[model] * (query.input_tokens + 4 * OUTPUT_TOKENS) / 1e6 / n
        return quality, cost


def described(text: str) -> Query:
    return shipped_featurizer().describe(text)
