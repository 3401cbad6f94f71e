"""The nouns of routing: what is asked, who could answer, what we expect of each, and what was chosen.

Everything here is a value: once made, nobody changes it. (`Query` and `Choice` are not frozen, for one of each
is made per request, and a frozen one takes three times as long to make.) A router never sees a clock, a socket
or a random generator of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


@dataclass(slots=True)
class Query:
    """What may be known of a request before any model has answered it."""

    text: str
    """The text of the last user turn, cut to what the featurizer reads. The vector describes it."""
    vector: Vector
    """Embedding and structural features, shape (d,); `features_version` says which."""
    features_version: str
    input_tokens: int = 0
    """Estimated tokens of the whole prompt."""
    max_output_tokens: int | None = None
    turns: int = 1
    tools: int = 0
    images: int = 0
    wants_json: bool = False
    task: str = ""
    """The task's name where data names it; live traffic leaves it empty."""
    web_searches: int = 0
    """The most web searches that the request lets the provider make."""
    tool_runs: tuple[tuple[str, int], ...] = ()
    """The most runs of each other tool that the provider runs: its kind and how often."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that could answer, with what it costs and how it is doing now."""

    model: str
    input_usd_per_mtok: float = 0.0
    output_usd_per_mtok: float = 0.0
    context_tokens: int = 0
    """Most tokens of prompt and answer together; 0: unknown."""
    supports: frozenset[str] = frozenset({"tools", "images", "json"})
    healthy: bool = True
    """False while every deployment's breaker is open."""
    queue_s: float = 0.0
    """Expected wait before the model starts on this request."""
    cached_share: float = 0.0
    """Share of the prompt's tokens expected to be in the model's prefix cache, 0 to 1."""
    cached_price: float = 0.1
    """Price of a cached token as a share of the input price; the default is about what providers charge."""
    latency_s: float = 0.0
    """Seconds that its recent answers took; 0: unknown."""
    default_max_output_tokens: int = 4096
    web_search_usd: float = 0.0
    """Price of one web search that the provider makes."""
    web_searches: int = 0
    """Web searches that the model makes for every answer, asked or not."""
    tool_usd: tuple[tuple[str, float], ...] = ()
    """The price of one run of each other tool that the provider runs: its kind and dollars."""


class Estimate(NamedTuple):
    """What a router expects of one candidate on one query."""

    model: str
    quality: float
    """Expected score in [0, 1]; NaN where the router has no estimate."""
    quality_sd: float
    """Standard deviation of that expectation (not of the score)."""
    cost_usd: float
    latency_s: float = float("nan")
    output_tokens: float = float("nan")


@dataclass(frozen=True, slots=True)
class Knobs:
    """What the operator or the request asked for; None where it asked for nothing."""

    cost_weight: float | None = None
    """Weight of cost against quality, from 0 (quality only) to 1 (cost only)."""
    min_quality: float | None = None
    max_cost_usd: float | None = None
    max_latency_s: float | None = None
    budget_usd_per_day: float | None = None
    wait_usd_per_s: float | None = None
    """Dollars that a second of delay is worth."""
    explore: bool = True
    """False for a tenant that opted out of exploration."""


@dataclass(slots=True)
class Choice:
    """A decision with everything needed to evaluate it later."""

    model: str
    propensity: float
    """Probability with which this model was chosen, given the query and the eligible models."""
    probabilities: Mapping[str, float]
    """Probability of each eligible model; they sum to 1."""
    estimates: Sequence[Estimate]
    excluded: Mapping[str, str]
    """The reason of each candidate that was not eligible, by model."""
    reason: str
    """One short phrase for the header `x-headgate-reason`."""
    router: str
    """`name@version`."""
    ranked: Sequence[str] = field(default=())
    """Eligible models, best first: the order in which fallbacks and cascades read them."""


class Router(Protocol):
    """Chooses among candidates. `draw` is a random number in [0, 1) from the caller, so that a choice can be repeated.
    """

    name: str
    version: str
    features_version: str
    """Empty where the router reads no vector."""

    def choose(self, query: Query, candidates: Sequence[Candidate], knobs: Knobs, draw: float) -> Choice:
        """Raises `routers.types.Undecided` where no candidate is eligible or an estimate is not finite."""
        ...


class Undecided(Exception):
    """The router can't decide. The route falls back to its configured default and an alarm is raised."""

    def __init__(self, reason: str, excluded: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.excluded = dict(excluded or {})
