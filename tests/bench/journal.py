"""A journal as a month of traffic leaves it, for tests and measurements: any number of decisions, written as shipped.

Everything is drawn from a seed. What is drawn: three routes, models and tenants, cache hits, errors, explored choices,
escalations, feedback on a share of the answers, and vectors on the latest decisions, which figures are made from.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import sqlalchemy as sa

from gateway.journal.record import AttemptRecord, CandidateRecord, DecisionRecord, EvidenceRecord, FeedbackRecord
from gateway.journal.store import Store
from gateway.journal.vectors import packed
from gateway.journal.write import write_records
from routers.features import shipped_featurizer

ROUTES = ("auto", "code", "chat")
MODELS = ("small", "large")
PRICES = {"small": (0.1, 0.4), "large": (2.0, 8.0)}
QUALITY = {"small": 0.72, "large": 0.9}
TENANTS = ("acme", "globex", "initech", "umbrella", "hooli")
BATCH = 5000
Described = tuple[str, tuple[bytes, int], str]
"""A question, its packed vector, and the version of its features."""
TEXTS = ("what is the capital of", "prove that this sum converges for", "write a poem about", "sort this list of",
         "translate into French:", "explain to a child")  # fmt: skip


def records(count: int, *, days: float = 30.0, seed: int = 7, vectors: int = 4000) -> Iterator[list[DecisionRecord]]:
    """Batches in the order of time; the last decision is of now."""
    rng, until_s = random.Random(seed), time.time()
    described = _vectors(rng) if vectors else []
    made: list[DecisionRecord] = []
    for number in range(count):
        time_s = until_s - days * 86400.0 * (1.0 - (number + 1) / count)
        vector = rng.choice(described) if count - number <= vectors else ("", (b"", 0), "")
        made.append(_decision(number, time_s, rng, vector))
        if len(made) == BATCH:
            yield made
            made = []
    yield made


def feedback(made: list[DecisionRecord], rng: random.Random, share: float = 0.1) -> list[FeedbackRecord]:
    """On some of the answers: right as often as the model is."""
    return [
        FeedbackRecord(
            id=f"fb_{one.id}", time_s=one.time_s + 5, tenant=one.tenant, decision_id=one.id,
            score=float(rng.random() < QUALITY[one.answered_model]),
        )
        for one in made
        if one.answered_model and not one.from_cache and rng.random() < share
    ]  # fmt: skip


def fill(store: Store, count: int, *, seed: int = 7, days: float = 30.0) -> None:
    """Writes them as the shipper does; on SQLite without waiting for the disk."""
    rng = random.Random(seed)
    with store.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA synchronous=OFF")
        connection.commit()
        for made in records(count, seed=seed, days=days):
            latest = not made or made[-1].time_s > time.time() - days * 8640
            with connection.begin():
                write_records(connection, [*made, *feedback(made, rng, 0.3 if latest else 0.05)])
        connection.execute(sa.text("ANALYZE" if connection.dialect.name == "sqlite" else "SELECT 1"))
        connection.commit()


def _decision(number: int, time_s: float, rng: random.Random, vector: Described) -> DecisionRecord:
    route, tenant = rng.choice(ROUTES), rng.choice(TENANTS)
    likely = "large" if rng.random() < 0.4 else "small"
    chances = {model: 0.9 if model == likely else 0.1 for model in MODELS}
    model = likely if rng.random() < 0.9 else next(one for one in MODELS if one != likely)
    into, out = rng.randint(20, 2000), rng.randint(5, 600)
    draw = rng.random()
    status = 502 if draw < 0.01 else 200
    cache = "hit" if draw > 0.9 else "semantic" if draw > 0.87 else "miss"
    asked = cache == "miss"
    escalated = asked and route == "code" and model == "small" and rng.random() < 0.25
    attempts = _attempts(model, escalated, into, out, rng, failed=status != 200) if asked else ()
    text, (kept, doubled), version = vector
    answered = "" if status != 200 else "large" if escalated else model
    return DecisionRecord(
        id=f"dec_{number:012x}", time_s=time_s, request_id=f"req_{number:012x}", response_id=f"chatcmpl-{number:x}",
        tenant=tenant, key_id=f"key_{tenant}", surface="chat", route=route, requested_model=route,
        features_version=version, vector=kept, doubled=doubled, input_tokens=into, turns=1,
        draw=rng.random(),
        candidates=tuple(
            CandidateRecord(model=one, quality=QUALITY[one] + rng.gauss(0, 0.05), quality_sd=0.05,
                            cost_usd=_usd(one, into, 200), latency_s=0.5, probability=chances[one])
            for one in MODELS
        ) if asked else (),
        model=model if asked else "", propensity=chances[model] if asked else None, router="default@1",
        reason="best estimate" if model == likely else "explored",
        plan=("small", "large") if route == "code" and model == "small" else (model,), thresholds=(0.7, None),
        attempts=attempts, verdict="accepted", answered_model=answered if asked else rng.choice(MODELS), status=status,
        cache=cache, saved_nanousd=0 if asked else round(_usd("large", into, out) * 1e9),
        cost_nanousd=sum(one.cost_nanousd for one in attempts), latency_s=rng.lognormvariate(-0.5, 0.8),
        ttft_s=rng.lognormvariate(-1.5, 0.6) if asked else None, overhead_ms=0.4, prompt_text=text,
        answer_text="an answer" if text else "",
    )  # fmt: skip


def _attempts(
    model: str, escalated: bool, into: int, out: int, rng: random.Random, *, failed: bool
) -> tuple[AttemptRecord, ...]:
    models = (model, "large") if escalated else (model,)
    return tuple(
        AttemptRecord(
            model=one, deployment=f"sim/{one}", latency_s=rng.lognormvariate(-0.5, 0.8), ttft_s=0.2,
            status=502 if failed else 200, failure="server_error" if failed else "",
            usage={"input": into, "output": out}, cost_nanousd=round(_usd(one, into, out) * 1e9),
            evidence=EvidenceRecord(mean_logprob=-0.3, output_tokens=out, confidence=0.5 if place == 0 else 0.9),
        )
        for place, one in enumerate(models)
    )  # fmt: skip


def _usd(model: str, into: int, out: int) -> float:
    price = PRICES[model]
    return (into * price[0] + out * price[1]) / 1e6


def _vectors(rng: random.Random) -> list[Described]:
    """Some hundred questions."""
    featurizer = shipped_featurizer()
    found = []
    for number in range(300):
        text = f"{rng.choice(TEXTS)} {number} {rng.choice(TEXTS)}"
        query = featurizer.describe(text)
        found.append((text, packed(query.vector), query.features_version))
    return found
