"""Recent decisions for the tests of the admin pages."""

from __future__ import annotations

import random
import time
from functools import cache
from typing import Any

from gateway.admin.services import AdminServices
from gateway.journal.record import DecisionRecord, FeedbackRecord, Record
from gateway.journal.vectors import packed
from gateway.journal.write import write_records
from routers.features import shipped_featurizer
from tests.gateway.journal.records import attempt, decision, feedback

QUALITY = {"small": 0.5, "large": 0.95}
COST = {"small": 1_000, "large": 20_000}


def write(admin: AdminServices, *records: Record) -> None:
    with admin.store.engine.begin() as connection:
        write_records(connection, records)


def recent(number: int, **changes: Any) -> DecisionRecord:
    """A decision made `number` seconds ago."""
    return decision(number, **{"time_s": time.time() - number, **changes})


@cache
def described(kind: str) -> tuple[str, tuple[bytes, int]]:
    """The features' version and the vector of a kind of question; computing one per decision would take seconds."""
    query = shipped_featurizer().describe(f"a question of {kind}")
    return query.features_version, packed(query.vector)


def explored(
    count: int, *, seed: int = 0, chance: float = 0.5, text: bool = True
) -> list[DecisionRecord | FeedbackRecord]:
    """Randomised decisions between two models, all scored; the large model is right more often and more expensive."""
    rng, found = random.Random(seed), list[DecisionRecord | FeedbackRecord]()
    for number in range(count):
        model = "small" if rng.random() < chance else "large"
        base = decision(0)
        candidates = tuple(
            type(base.candidates[0])(model=one, quality=QUALITY[one], quality_sd=0.1, cost_usd=COST[one] / 1e9,
                                     probability=chance if one == "small" else 1 - chance)
            for one in ("small", "large")
        )  # fmt: skip
        kind = rng.choice("abcdef")
        version, (vector, doubled) = described(kind) if text else ("", (b"", 0))
        one = recent(
            count - number, id=f"dec_{number}", model=model, answered_model=model, propensity=candidates[0].probability,
            candidates=candidates, plan=(model,), cost_nanousd=COST[model], router="default@1",
            attempts=(attempt(model, cost_nanousd=COST[model]),), excluded={},
            prompt_text=f"question {number} of {kind}" if text else "", features_version=version, vector=vector,
            doubled=doubled, answer_text="x" if text else "",
        )  # fmt: skip
        found += [one, feedback(number, float(rng.random() < QUALITY[model]), time_s=one.time_s)]
    return found
