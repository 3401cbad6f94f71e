"""One checked answer of the measurement on the shipped models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the gateway."""

    text: str
    right: bool
    model: str
    calls: int
    """Of upstream models, that it took."""
    cost_usd: float
    confidence: float
    large: bool = False
    """The large model was called."""
    tokens: tuple[int, int] = (0, 0)
    """Of prompt and answer."""
