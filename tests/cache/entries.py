"""Entries, and a learned rule that accepts them all, for the tests of stores and of the semantic cache."""

from __future__ import annotations

from dataclasses import replace

from cache.acceptance import Acceptance
from cache.entry import Entry
from cache.neighbours import FEATURES


def entry(entry_id: str = "e1", tenant: str = "t", body: bytes = b'{"a":1}', **more: float) -> Entry:
    """An entry whose content doesn't matter."""
    times = {"created_s": 100.0, "ttl_s": 60.0, "cost_usd": 0.01, **more}
    return Entry(entry_id, "chat", body, "small", "d1", tenant=tenant, input_tokens=3, output_tokens=5, **times)


def accept_all(rule: Acceptance, rows: int = 200) -> None:
    """Make the rule accept every candidate, as if it had learned to from this many judged rows."""
    for n in range(rows):
        rule.learn([0.9 if n % 2 else 0.1] * FEATURES, bool(n % 2), 1.0, audited=False)
    rule.refit()
    assert rule.fitted is not None
    rule.fitted = replace(rule.fitted, threshold=0.0, unproven=None)
