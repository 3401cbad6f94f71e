"""Routers that learn nothing: by rules, by fixed weights, by price. They read no vector and estimate no quality."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import TypeVar, cast

from routers.eligible import TYPICAL_OUTPUT_TOKENS, eligible, expected_usd
from routers.select import Exploration, Forecast, chosen, probabilities
from routers.types import Candidate, Choice, Knobs, Query, Undecided

TOO_EXPENSIVE = "expected to cost more than max_cost_usd"

T = TypeVar("T")

_KEYS = frozenset(
    {
        "match", "keywords", "min_input_tokens", "max_input_tokens", "min_turns",
        "tools", "images", "json", "model", "weights",
    }
)  # fmt: skip


def too_expensive(query: Query, candidate: Candidate, knobs: Knobs) -> bool:
    """Whether a typical answer would cost more than `max_cost_usd`."""
    limit = knobs.max_cost_usd
    return limit is not None and expected_usd(query, candidate, TYPICAL_OUTPUT_TOKENS) > limit


def affordable(
    query: Query, candidates: Sequence[Candidate], knobs: Knobs
) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates that may answer and are not too expensive, and the reason of each other one by model. Raises
    Undecided where none is left.
    """
    kept, excluded = eligible(query, candidates, knobs)
    if knobs.max_cost_usd is not None:
        excluded |= {c.model: TOO_EXPENSIVE for c in kept if too_expensive(query, c, knobs)}
        kept = [c for c in kept if c.model not in excluded]
        if not kept:
            raise Undecided("no candidate within max_cost_usd", excluded)
    return kept, excluded


def priced(query: Query, candidates: Sequence[Candidate]) -> Forecast:
    """A forecast of costs alone, from prices and a typical answer; quality and latency stay NaN."""
    unknown = [nan] * len(candidates)
    cost = [expected_usd(query, c, TYPICAL_OUTPUT_TOKENS) for c in candidates]
    return Forecast([c.model for c in candidates], unknown, unknown, cost, unknown, unknown)


def _pick(
    query: Query,
    kept: Sequence[Candidate],
    excluded: Mapping[str, str],
    weights: Mapping[str, float],
    draw: float,
    router: str,
    reason: str,
) -> Choice:
    """A draw by weight among the eligible models."""
    shares = [max(weights.get(c.model, 0.0), 0.0) for c in kept]
    total = sum(shares)
    if not total > 0:
        raise Undecided(f"{reason}: no eligible model has a weight", excluded)
    shares = [share / total for share in shares]
    forecast = priced(query, kept)
    return replace(chosen(forecast, shares, shares, draw, excluded, router), reason=reason)


class Weighted:
    """Draws a model by fixed weights. Models without a weight are never drawn; without any weights all models are
    equally likely.
    """

    name = "weighted"
    features_version = ""

    def __init__(self, weights: Mapping[str, float] | None = None, version: str = "1") -> None:
        self.version = version
        self._weights = dict(weights or {})
        for model, weight in self._weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"weights.{model}: {weight} is not a finite number of 0 or more")

    def choose(self, query: Query, candidates: Sequence[Candidate], knobs: Knobs, draw: float) -> Choice:
        kept, excluded = affordable(query, candidates, knobs)
        weights = self._weights or {c.model: 1.0 for c in kept}
        return _pick(query, kept, excluded, weights, draw, f"weighted@{self.version}", "weight")


class Cheapest:
    """The eligible model with the least expected price."""

    name = "cheapest"
    version = "1"
    features_version = ""

    def choose(self, query: Query, candidates: Sequence[Candidate], knobs: Knobs, draw: float) -> Choice:
        kept, excluded = affordable(query, candidates, knobs)
        forecast = priced(query, kept)
        worth = [-cost for cost in forecast.cost_usd]
        chances = probabilities(worth, Exploration(), False)
        return chosen(forecast, worth, chances, draw, excluded, f"cheapest@{self.version}", "least price")


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule holds where all its conditions do. It names one model, or weights over several."""

    weights: Mapping[str, float]
    match: re.Pattern[str] | None = None
    keywords: tuple[str, ...] = ()
    min_input_tokens: float = 0
    max_input_tokens: float = float("inf")
    min_turns: float = 0
    tools: bool | None = None
    images: bool | None = None
    json: bool | None = None

    def holds(self, query: Query) -> bool:
        return (
            self.min_input_tokens <= query.input_tokens <= self.max_input_tokens
            and query.turns >= self.min_turns
            and self.tools in (None, query.tools > 0)
            and self.images in (None, query.images > 0)
            and self.json in (None, query.wants_json)
            and (not self.keywords or any(word in query.text.lower() for word in self.keywords))
            and (self.match is None or self.match.search(query.text) is not None)
        )


def read_rule(index: int, stated: Mapping[str, object]) -> Rule:
    """One rule of the configuration. ValueError names the rule and the key at fault."""
    at = f"rules[{index}]"
    unknown = stated.keys() - _KEYS
    if unknown:
        raise ValueError(f"{at}.{min(unknown)}: unknown key; known are {', '.join(sorted(_KEYS))}")
    if ("model" in stated) == ("weights" in stated):
        raise ValueError(f"{at}: names one of `model` and `weights`")
    return Rule(
        weights=_rule_weights(at, stated),
        match=_pattern(at, stated),
        keywords=_keywords(at, stated),
        min_input_tokens=_typed(at, stated, "min_input_tokens", (int, float), 0),
        max_input_tokens=_typed(at, stated, "max_input_tokens", (int, float), float("inf")),
        min_turns=_typed(at, stated, "min_turns", (int, float), 0),
        tools=_typed(at, stated, "tools", (bool,), None),
        images=_typed(at, stated, "images", (bool,), None),
        json=_typed(at, stated, "json", (bool,), None),
    )


def _typed(at: str, stated: Mapping[str, object], key: str, kinds: tuple[type, ...], default: T) -> T:
    value = stated.get(key, default)
    if key in stated and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
        raise ValueError(f"{at}.{key}: {value!r} is not {' or '.join(kind.__name__ for kind in kinds)}")
    return cast(T, value)


def _rule_weights(at: str, stated: Mapping[str, object]) -> Mapping[str, float]:
    if "model" in stated:
        return {_typed(at, stated, "model", (str,), ""): 1.0}
    weights: Mapping[str, object] = _typed(at, stated, "weights", (dict,), {})
    for model, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise ValueError(f"{at}.weights.{model}: {weight!r} is not a finite number of 0 or more")
    return cast(Mapping[str, float], weights)


def _keywords(at: str, stated: Mapping[str, object]) -> tuple[str, ...]:
    words: Sequence[object] = _typed(at, stated, "keywords", (list, tuple), ())
    for place, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            raise ValueError(f"{at}.keywords[{place}]: {word!r} is not a word")
    return tuple(str(word).lower() for word in words)


def _pattern(at: str, stated: Mapping[str, object]) -> re.Pattern[str] | None:
    if "match" not in stated:
        return None
    try:
        return re.compile(_typed(at, stated, "match", (str,), ""))
    except re.error as error:
        raise ValueError(f"{at}.match: {error}") from error


class Rules:
    """The first rule that holds and has an eligible model decides. Raises Undecided where there is none."""

    name = "rules"
    version = "1"
    features_version = ""

    def __init__(self, rules: Sequence[Mapping[str, object]]) -> None:
        self._rules = [read_rule(i, stated) for i, stated in enumerate(rules)]

    def choose(self, query: Query, candidates: Sequence[Candidate], knobs: Knobs, draw: float) -> Choice:
        kept, excluded = affordable(query, candidates, knobs)
        names = {c.model for c in kept}
        for index, rule in enumerate(self._rules):
            if not names.isdisjoint(rule.weights) and rule.holds(query):
                return _pick(query, kept, excluded, rule.weights, draw, f"rules@{self.version}", f"rule {index}")
        raise Undecided("no rule holds", excluded)
