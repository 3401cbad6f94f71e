"""The outcome of a decision as bit flags, stored in a column, so that a search reads no records."""

from __future__ import annotations

from gateway.journal.record import AttemptRecord, CandidateRecord, DecisionRecord

ERROR, CACHED, ESCALATED, EXPLORED, AUDIT = 1, 2, 4, 8, 16
NAMES = {"error": ERROR, "cached": CACHED, "escalated": ESCALATED, "explored": EXPLORED, "audit": AUDIT}
AUDIT_KEY = "audit"
"""Key id of the gateway's own calls: shadow questions and judgements."""


def flags_of(record: DecisionRecord) -> int:
    """The flags of a decision; 0 for a plain answer."""
    flags = ERROR if record.status >= 400 else 0
    if record.from_cache:
        flags |= CACHED
    if record.model and record.answered_model in record.plan[1:]:
        flags |= ESCALATED
    if explored_nanousd(record) is not None:
        flags |= EXPLORED
    return flags | AUDIT if record.key_id == AUDIT_KEY else flags


def named(flags: int) -> list[str]:
    """The names of the flags that are set."""
    return [name for name, bit in NAMES.items() if flags & bit]


def explored_nanousd(record: DecisionRecord) -> int | None:
    """Nano-dollars of the cost that the likeliest model was expected to save, at least 0. None where the likeliest
    model was chosen, or the router has no estimates and so chooses by chance alone.
    """
    if len(record.candidates) < 2 or not record.model or (record.propensity or 0.0) > 0.5:
        return None  # more than half: it is the likeliest
    likeliest: CandidateRecord | None = None
    chosen: CandidateRecord | None = None
    for one in record.candidates:
        if likeliest is None or one.probability > likeliest.probability:
            likeliest = one
        if one.model == record.model:
            chosen = one
    if chosen is None or likeliest is None or chosen.quality is None or chosen.probability >= likeliest.probability:
        return None
    if not chosen.cost_usd or likeliest.cost_usd is None or likeliest.cost_usd >= chosen.cost_usd:
        return 0
    return round(record.cost_nanousd * (1.0 - max(likeliest.cost_usd, 0.0) / chosen.cost_usd))


def kept_attempt(record: DecisionRecord) -> AttemptRecord | None:
    """The attempt whose answer the client got; None where there is none."""
    for attempt in reversed(record.attempts):
        if not attempt.failure and attempt.model == record.answered_model:
            return attempt
    return None
