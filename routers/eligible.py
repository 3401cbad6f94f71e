"""Which candidates may answer at all. Each one that is left out is named with its reason."""

from __future__ import annotations

from collections.abc import Sequence

from routers.types import Candidate, Knobs, Query, Undecided

SHORT_ANSWER_TOKENS = 16
"""Tokens that a prompt must leave free in a model's context when the request names no output limit."""

TYPICAL_OUTPUT_TOKENS = 256.0
"""Output tokens that an answer is assumed to have where nothing was learned."""


def least_room(query: Query) -> int:
    """Tokens that the context must hold: the prompt and the output asked for."""
    return query.input_tokens + (query.max_output_tokens or SHORT_ANSWER_TOKENS)


def expected_usd(query: Query, candidate: Candidate, output_tokens: float) -> float:
    """Price of this query with that many output tokens."""
    output = min(output_tokens, query.max_output_tokens or candidate.default_max_output_tokens)
    tokens = (query.input_tokens * candidate.input_usd_per_mtok + output * candidate.output_usd_per_mtok) / 1e6
    return tokens + candidate.web_searches * candidate.web_search_usd


def worst_usd(query: Query, candidate: Candidate) -> float:
    """The most dollars that an answer can cost, with as many web searches and runs of tools as the request allows.
    Without an output limit only the prompt is counted.
    """
    tokens = expected_usd(query, candidate, float(query.max_output_tokens or 0))
    searches = max(query.web_searches - candidate.web_searches, 0) * candidate.web_search_usd
    if not (query.tool_runs and candidate.tool_usd):
        return tokens + searches
    each_usd = dict(candidate.tool_usd)
    return tokens + searches + sum(count * each_usd.get(kind, 0.0) for kind, count in query.tool_runs)


def exclusion(query: Query, candidate: Candidate, knobs: Knobs) -> str:
    """Why this candidate can't answer this query; empty where it can."""
    if not candidate.healthy:
        return "unhealthy"
    if candidate.context_tokens and least_room(query) > candidate.context_tokens:
        return "context too short"
    supports = candidate.supports
    if query.tools and "tools" not in supports:
        return "no tools"
    if query.images and "images" not in supports:
        return "no images"
    if query.wants_json and "json" not in supports:
        return "no JSON mode"
    return over(query, candidate, knobs)


def over(query: Query, candidate: Candidate, knobs: Knobs) -> str:
    """Which bound of the knobs an answer of this candidate may break; empty where it breaks none."""
    if knobs.max_cost_usd is not None and worst_usd(query, candidate) > knobs.max_cost_usd:
        return "may cost more than max_cost_usd"
    if knobs.max_latency_s is not None and candidate.queue_s > knobs.max_latency_s:
        return "queue longer than max_latency_s"
    return ""


def eligible(query: Query, candidates: Sequence[Candidate], knobs: Knobs) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates that may answer, in the order given, and the reason of each other one by model. Raises Undecided
    where none may.
    """
    room, needs = least_room(query), _needs(query)
    if knobs.max_cost_usd is None and knobs.max_latency_s is None:
        fit = [
            one
            for one in candidates
            if one.healthy
            and (room <= one.context_tokens or not one.context_tokens)
            and (not needs or needs <= one.supports)
        ]
        if fit and len(fit) == len(candidates):  # nearly always
            return fit, {}
    kept: list[Candidate] = []
    excluded: dict[str, str] = {}
    for candidate in candidates:
        if reason := exclusion(query, candidate, knobs):
            excluded[candidate.model] = reason
        else:
            kept.append(candidate)
    if not kept:
        raise Undecided("no candidate is eligible", excluded)
    return kept, excluded


_NOTHING = frozenset[str]()


def _needs(query: Query) -> frozenset[str]:
    if not (query.tools or query.images or query.wants_json):
        return _NOTHING
    asked = {"tools": query.tools, "images": query.images, "json": query.wants_json}
    return frozenset(name for name, wanted in asked.items() if wanted)
