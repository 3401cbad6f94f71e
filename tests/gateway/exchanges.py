"""Exchanges as the request path leaves them, made of the real parts."""

from __future__ import annotations

from cascade.types import Verdict
from gateway.call import Arrival, read_call
from gateway.config.types import Config, ModelConfig, ProviderConfig, RouteConfig
from gateway.exchange import Attempt, Exchange
from gateway.keys import ANYONE
from gateway.money.ledger import MemoryLedger
from gateway.money.limits import NOTHING_TAKEN
from gateway.routes import RouteBook
from gateway.wire.usage import Usage
from routers.registry import open_router
from routers.types import Choice

PROMPT = b"the secret recipe is cinnamon"
CONFIG = Config(
    providers=[ProviderConfig(name="acme", kind="openai", base_url="http://127.0.0.1:9/v1")],
    models=[ModelConfig(name="small", provider="acme"), ModelConfig(name="large", provider="acme")],
    routes=[RouteConfig(name="auto", models=["small", "large"], router="cheapest", explore=0.1)],
)
BOOK = RouteBook(CONFIG, {"auto": open_router("cheapest")})


def exchange(headers: dict[bytes, bytes] | None = None, *, received_s: float = 0.0) -> Exchange:
    """A chat request of 20 + 5 tokens whose router chose small; small failed, large answered."""
    body = b'{"model":"auto","messages":[{"role":"user","content":"%s"}]}' % PROMPT
    arrival = Arrival(headers or {}, "127.0.0.1", "req-1", received_s)
    call = read_call("chat", body, arrival, max_messages=10, timeout_s=60.0)
    hold = MemoryLedger().hold_now((), 0)
    made = Exchange(call, ANYONE, BOOK.find("auto"), "dec-1", hold, NOTHING_TAKEN)
    made.choice = Choice(
        "small", 0.05, {"small": 0.05, "large": 0.95}, (), {}, "cheap", "cheapest@1", ("large",)
    )
    made.attempts = [
        Attempt("small", "acme/small-1", 0.01, 0.5, status=503, failure="overloaded"),
        Attempt("large", "acme/large-1", 0.6, 1.0, 0.25, status=200, usage=Usage(20, 7, 0, 5, known=True),
                cost_nanousd=2_000_000),
    ]  # fmt: skip
    made.verdict = Verdict(1, "large", "only", 0.002, 2)
    made.status, made.answered_by, made.upstream_s, made.cache_state = 200, "large", 1.5, "miss"
    return made
