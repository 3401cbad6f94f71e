"""What a single decision record says: whether it is a round to learn from, and what its answer's checks say.

Apart from the data set, for workers learn while they serve and read one record at a time.
"""

from __future__ import annotations

import hashlib
from math import isfinite

from gateway.journal.record import DecisionRecord

CLIENT_LEFT = 499


OF_JOBS = "batch@%"
"""What batch jobs' decisions name as their router, for SQL's LIKE."""


def is_round(record: DecisionRecord) -> bool:
    """A model was chosen by chance, and the client waited for what came of it. A batch job's plan leaves nothing to
    chance: its prompts say nothing of what another setting of the route would have done.
    """
    if record.job or not record.model or record.from_cache or record.status == CLIENT_LEFT or not record.attempts:
        return False
    chosen = record.chosen
    return chosen is not None and isfinite(chosen.probability) and 0.0 < chosen.probability <= 1.0 + 1e-9


def was_checked(record: DecisionRecord) -> bool:
    """Whether an automatic check looked at what the answer says: passing it is worth something."""
    answer = next((one for one in reversed(record.attempts) if one.model == record.answered_model), None)
    seen = answer.evidence if answer else None
    return seen is not None and any(
        one is not None for one in (seen.schema_valid, seen.tools_parse, seen.checks_passed)
    )


def failed_check(record: DecisionRecord) -> str:
    """What an automatic check found wrong with the answer that the client got; empty: nothing."""
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
    """A number in [0, 1) that belongs to this id for good."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8]) / 2**64
