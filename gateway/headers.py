"""Response headers: what every answer says of itself, and what an error tells a client to do next."""

from __future__ import annotations

from math import ceil, isfinite

from gateway.errors import HeadgateError
from gateway.exchange import Exchange
from gateway.reply import Headers

MAX_REASON = 200


def answer_headers(exchange: Exchange, now: float, *, streamed: bool = False) -> Headers:
    """A stream's cost is not known when its headers go: there `x-headgate-cost-usd` is the estimate."""
    call, choice = exchange.call, exchange.choice
    cost = exchange.cost_nanousd or (expected_nanousd(exchange) if streamed else 0)
    request_id = call.request_id.encode()
    ours_ms = (now - call.received_s - exchange.upstream_s) * 1e3
    reason = choice.reason if choice is not None else exchange.cache_state
    headers = [
        (b"x-request-id", request_id),
        (b"x-headgate-decision-id", exchange.decision_id.encode()),
        (b"x-headgate-model", printable(exchange.answered_by)),
        (b"x-headgate-reason", printable(reason)),
        (b"x-headgate-cost-usd", b"%.9f" % (cost / 1e9)),
        (b"x-headgate-cache", exchange.cache_state.encode()),
        (b"x-headgate-overhead-ms", b"%.3f" % ours_ms),
        (b"openai-processing-ms", b"%d" % ((now - call.received_s) * 1e3)),
    ]
    if call.surface == "messages":
        headers.append((b"request-id", request_id))
    return headers + exchange.taken.headers(now)


def error_headers(error: HeadgateError, *, spent: bool = False) -> Headers:
    """`spent`: our own attempts are used up, so the client's retries would only multiply them."""
    headers: Headers = []
    if error.retry_after_s is not None and isfinite(error.retry_after_s):
        headers.append((b"retry-after", b"%d" % max(1, ceil(error.retry_after_s))))
        headers.append((b"retry-after-ms", b"%d" % ceil(error.retry_after_s * 1e3)))
    if spent:
        headers.append((b"x-should-retry", b"false"))
    return headers


def expected_nanousd(exchange: Exchange) -> int:
    """What the router expected the answering model to cost; 0 where it had no opinion."""
    for estimate in exchange.choice.estimates if exchange.choice is not None else ():
        if estimate.model == exchange.answered_by and isfinite(estimate.cost_usd):
            return round(estimate.cost_usd * 1e9)
    return 0


def printable(text: str) -> bytes:
    """A header value of visible ASCII, whatever the text was."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:MAX_REASON]).encode("ascii")
