"""Response headers: the decision behind an answer, and when to retry after an error."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, isfinite

from gateway.errors import HeadgateError
from gateway.exchange import Exchange
from gateway.reply import JSON, Headers
from gateway.routes import Model

MAX_VALUE_CHARS = 200
TYPICAL_OUTPUT_TOKENS = 256


def answer_headers(exchange: Exchange, now: float, *, expected_nanousd: int = 0) -> Headers:
    """Headers of an answer, or of an error after the request was held. `expected_nanousd`: the estimated cost still to
    come of a stream, whose headers are sent before its cost is known.
    """
    call, choice = exchange.call, exchange.choice
    cost = exchange.cost_nanousd + expected_nanousd
    request_id = call.request_id.encode()
    overhead_ms = (now - call.received_s - exchange.upstream_s) * 1e3
    reason = choice.reason if choice is not None else exchange.cache_state
    headers = [
        (b"x-request-id", request_id),
        (b"x-headgate-decision-id", exchange.decision_id.encode()),
        (b"x-headgate-model", printable(exchange.answered_by)),
        (b"x-headgate-reason", printable(reason)),
        (b"x-headgate-cost-usd", b"%.9f" % (cost / 1e9)),
        (b"x-headgate-cache", exchange.cache_state.encode()),
        (b"x-headgate-overhead-ms", b"%.3f" % overhead_ms),
        (b"openai-processing-ms", b"%d" % ((now - call.received_s) * 1e3)),
    ]
    if call.surface == "messages":
        headers.append((b"request-id", request_id))
    return headers + exchange.taken.headers(now)


def refusal_headers(request_id: str, surface: str, error: HeadgateError) -> Headers:
    """Headers of an error for a request that was refused before it was held."""
    return [*request_ids(request_id, surface), JSON, *error_headers(error)]


def request_ids(request_id: str, surface: str) -> Headers:
    """The request's id in OpenAI's header, and on the messages surface in Anthropic's header too."""
    id = request_id.encode()
    return [(b"x-request-id", id), (b"request-id", id)] if surface == "messages" else [(b"x-request-id", id)]


def error_headers(error: HeadgateError, *, spent: bool = False) -> Headers:
    """Headers that tell a client when to retry, or not to: `spent` says that the gateway has already made attempts,
    which the client's retries would only multiply.
    """
    headers: Headers = []
    if error.retry_after_s is not None and isfinite(error.retry_after_s):
        headers.append((b"retry-after", b"%d" % max(1, ceil(error.retry_after_s))))
        headers.append((b"retry-after-ms", b"%d" % ceil(error.retry_after_s * 1e3)))
    if spent:
        headers.append((b"x-should-retry", b"false"))
    return headers


def expected_nanousd(exchange: Exchange, model: Model) -> int:
    """Estimated cost of a stream in nano-dollars: the router's estimate, else that of its prompt and an answer of
    TYPICAL_OUTPUT_TOKENS. A model that may search the web, or run another tool of its provider, is expected to do so
    once.
    """
    request, price, always = exchange.call.described, model.price, model.candidate.web_searches
    searches, runs = max(always, min(request.web_searches, 1)), dict.fromkeys(request.tool_runs, 1)
    for estimate in exchange.choice.estimates if exchange.choice is not None else ():
        if estimate.model == exchange.answered_by and isfinite(estimate.cost_usd):
            return round(estimate.cost_usd * 1e9) + (searches - always) * price.web_search + price.tool_cost(runs)
    if request.expected is not None:
        return price.cost(request.expected, request.tier)
    output = min(request.max_output_tokens or TYPICAL_OUTPUT_TOKENS, TYPICAL_OUTPUT_TOKENS)
    return price.worst(request.input_tokens, output, request.n, searches, tier=request.tier, tool_runs=runs)


@lru_cache(4096)
def printable(text: str) -> bytes:
    """The text's first MAX_VALUE_CHARS characters as a header value, with "?" for all but printable ASCII."""
    text = text[:MAX_VALUE_CHARS]
    if text.isascii() and text.isprintable():
        return text.encode()
    return "".join(c if " " <= c <= "~" else "?" for c in text).encode("ascii")
