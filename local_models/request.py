"""Requests to an engine and the events that it returns: plain data, no torch.

Every request ends in exactly one `Finished`, whatever happened to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from local_models.errors import RequestRefused
from local_models.grammar import Grammar

Ending = Literal["stop", "length", "cancelled", "deadline", "refused", "error"]
"""refused: the request can't be answered as it asks; error: the engine can't."""


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise RequestRefused(f"{name} must be between {low:g} and {high:g}", param=name)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request's tokens are drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, 2.0)
        _within("top_p", self.top_p, 0.0, 1.0)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.top_k < 0:
            raise RequestRefused("top_k must be 0 or more", param="top_k")

    @property
    def plain_greedy(self) -> bool:
        """True when the likeliest token of the untouched scores is the answer."""
        touched = self.presence_penalty or self.frequency_penalty or self.logit_bias
        return self.temperature == 0.0 and not touched


@dataclass(frozen=True, slots=True)
class Request:
    """One answer wanted for one prompt."""

    id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    """None: no log-probabilities; 0: of the chosen token only."""
    ignore_end: bool = False
    """True: run to `max_tokens`; for measurements."""
    deadline_s: float | None = None
    """On the engine's clock."""
    salt: str = ""
    """Prefixes are shared only between requests of one salt."""
    grammar: Grammar | None = None
    """Compiled at admission; None: free text."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token, its log-probability, and the likeliest alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Usage:
    """Tokens, time and energy that a request took."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    compute_s: float = 0.0
    """Seconds of the engine's time that were charged to this request."""
    joules: float | None = None
    """Its share of the energy; None where the hardware does not tell."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """A further piece of an answer."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request."""

    request_id: str
    reason: Ending
    text: str = ""
    """Text that was held back because a stop string might have begun in it."""
    message: str = ""
    usage: Usage = field(default_factory=Usage)
    stopped_by: str | None = None
    """The stop string that ended the answer; None where none did."""


Event = Delta | Finished
