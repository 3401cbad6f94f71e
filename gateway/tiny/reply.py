"""One checked answer in `headgate cascade tiny`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the gateway."""

    text: str
    right: bool
    model: str
    calls: int
    """Number of attempts that it took."""
    cost_usd: float
    confidence: float
    large: bool = False
    """Whether the large model was called."""
    tokens: tuple[int, int] = (0, 0)
    """Number of tokens of the prompt and of the answer."""
