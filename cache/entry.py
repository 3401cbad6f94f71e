"""What the cache keeps and what it answers with."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Entry:
    """One complete, successful answer, in the shape of the surface it was asked on (never streamed)."""

    id: str
    """Opaque identifier, for `DELETE /v1/cache/entries/{id}` and the decision record."""
    surface: str
    body: bytes
    model: str
    decision_id: str
    created_s: float
    """Unix time."""
    ttl_s: float
    cost_usd: float
    """Dollars that the answer cost, and so what a hit saves."""
    tenant: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Hit:
    """An entry that answers this request, and why it may."""

    entry: Entry
    kind: str
    """"exact" or "semantic"."""
    similarity: float = 1.0
    why: dict[str, object] = field(default_factory=dict)
