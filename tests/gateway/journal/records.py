"""Records that the tests store."""

from __future__ import annotations

from typing import Any

from gateway.journal.record import (
    AttemptRecord,
    CandidateRecord,
    DecisionRecord,
    EvidenceRecord,
    FeedbackRecord,
)

NOON_S = 1_700_049_600.0
KEEP_DAYS = 30.0


def decision(number: int, **changes: Any) -> DecisionRecord:
    """The decision with this number: `small` was chosen with probability .8 and answered after 0.2 s for 1000
    nano-dollars.
    """
    fields: dict[str, Any] = {
        "id": f"dec_{number}",
        "time_s": NOON_S + number,
        "request_id": f"req_{number}",
        "response_id": f"chatcmpl-{number}",
        "tenant": "acme",
        "key_id": "key_1",
        "surface": "chat",
        "route": "auto",
        "requested_model": "auto",
        "candidates": (
            CandidateRecord(model="small", quality=0.7, quality_sd=0.1, cost_usd=1e-6, probability=0.8),
            CandidateRecord(model="large", quality=0.9, quality_sd=0.1, cost_usd=9e-6, probability=0.2),
        ),
        "excluded": {"tiny": "context"},
        "model": "small",
        "propensity": 0.8,
        "router": "knn@3",
        "reason": "cheapest above the floor",
        "plan": ("small",),
        "attempts": (attempt("small"),),
        "verdict": "only",
        "answered_model": "small",
        "status": 200,
        "cache": "miss",
        "cost_nanousd": 1000,
        "latency_s": 0.2,
    }
    return DecisionRecord(**{**fields, **changes})


def attempt(model: str, **changes: Any) -> AttemptRecord:
    """One successful call."""
    fields: dict[str, Any] = {
        "deployment": f"acme/{model}",
        "status": 200,
        "latency_s": 0.2,
        "usage": {"input": 10, "cache_read": 2, "output": 5},
        "cost_nanousd": 1000,
        "evidence": EvidenceRecord(confidence=0.6),
    }
    return AttemptRecord(model=model, **{**fields, **changes})


def feedback(number: int, score: float | None, **changes: Any) -> FeedbackRecord:
    """Feedback `fb_{number}` on decision `dec_{number}` unless told otherwise."""
    fields: dict[str, Any] = {"tenant": "acme", "decision_id": f"dec_{number}"}
    return FeedbackRecord(
        **{"id": f"fb_{number}", "time_s": NOON_S + number, "score": score, **fields, **changes}
    )
