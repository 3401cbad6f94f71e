"""Reads single decision records: whether one is a round to learn from, and the results of its answer's checks.

It is separate from the data set, because workers that learn while they serve read one record at a time.
"""

from __future__ import annotations

import hashlib
from math import isfinite

from gateway.journal.record import DecisionRecord

CLIENT_LEFT = 499
OF_JOBS = "batch@%"
"""The router's label in decisions of batch jobs, as a pattern for SQL's LIKE."""


def is_round(record: DecisionRecord) -> bool:
    """Whether a model was chosen with a known probability and the client waited for the answer. Decisions of batch jobs
    are no rounds: a plan chooses without chance, so they say nothing about other settings of the route.
    """
    if record.job or not record.model or record.from_cache or record.status == CLIENT_LEFT or not record.attempts:
        return False
    chosen = record.chosen
    return chosen is not None and isfinite(chosen.probability) and 0.0 < chosen.probability <= 1.0 + 1e-9


def was_checked(record: DecisionRecord) -> bool:
    """Whether an automatic check examined the contents of the answer."""
    answer = next((one for one in reversed(record.attempts) if one.model == record.answered_model), None)
    seen = answer.evidence if answer else None
    return seen is not None and any(
        one is not None for one in (seen.schema_valid, seen.tools_parse, seen.checks_passed)
    )


def failed_check(record: DecisionRecord) -> str:
    """The fault that an automatic check found in the answer that the client got; empty where there is none."""
    if record.status >= 500:
        return "no answer"
    answer = next((one for one in reversed(record.attempts) if one.model == record.answered_model), None)
    seen = answer.evidence if answer else None
    if seen is None:
        return ""
    if seen.schema_valid is False:
        return "invalid schema"
    if seen.tools_parse is False:
        return "tool call does not parse"
    if seen.checks_passed is False:
        return "a check failed"
    return "refused" if seen.refused else ""


def drawn_of(id: str) -> float:
    """A pseudo-random number in [0, 1) that is always the same for the same id."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8]) / 2**64
