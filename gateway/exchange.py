"""The state of one request: the only object that changes while it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from typing import TYPE_CHECKING

import msgspec

from cascade.types import Evidence, Plan, Verdict
from gateway.reply import JSON
from gateway.wire.usage import Usage
from routers.replicas import Job
from routers.strategy_bandit import Pick
from routers.types import Choice, Knobs, Query

if TYPE_CHECKING:
    from cache.entry import Hit
    from cache.prefix import Chain
    from cache.rules import Directive
    from cache.semantic import Comparison, Miss
    from gateway.answer_cache import Similar
    from gateway.call import Call
    from gateway.keys import Caller
    from gateway.ledger import Hold
    from gateway.limits import Taken
    from gateway.routes import Route
    from gateway.wire.chunk import Peek
    from gateway.wire.relay import Relay

NO_USAGE, NO_EVIDENCE = Usage(), Evidence()


class Attempt(msgspec.Struct):
    """One call of one deployment, whatever came of it."""

    model: str
    deployment: str
    started_s: float
    """Since the request's arrival."""
    latency_s: float = 0.0
    first_byte_s: float | None = None
    status: int = 0
    failure: str = ""
    usage: Usage = NO_USAGE
    cost_nanousd: int = 0
    tier: str = ""
    """The service tier that the deployment was asked for; empty: none."""
    estimated: bool = False
    """True: the upstream reported no usage, so tokens were estimated."""
    evidence: Evidence = NO_EVIDENCE
    confidence: float = nan
    """As the cascade reads it from the evidence."""
    hedge: bool = False
    """True: a second attempt, started because the first was slow."""
    gathered: int = 0
    """Questions asked in the same call; usage and cost are then this question's share. 0: it was asked alone."""
    job: Job | None = None
    """Its place in the deployment's load, where requests are balanced by delay."""


class Kept(msgspec.Struct):
    """A whole answer from upstream that a verdict may keep."""

    attempt: Attempt
    dialect: str
    body: bytes
    seen: Peek
    strip_logprobs: bool = False
    """True: the gateway asked for its log-probabilities, not the client."""


class Exchange(msgspec.Struct):
    """A call and everything decided about it."""

    call: Call
    caller: Caller
    route: Route
    decision_id: str
    hold: Hold
    taken: Taken
    """Taken from rate limits; corrected later by what was really used."""
    worst: Mapping[str, int] = {}
    """Most nano-dollars that one attempt can cost, for each model that may be tried."""
    query: Query | None = None
    choice: Choice | None = None
    links: Chain = ()
    """The conversation's prefixes, where the choice takes warm caches into account."""
    opening: bytes = b""
    """Of them, the hash up to the first turn of a user."""
    strategy_pick: Pick | None = None
    """The strategy drawn for this query, where the route learns strategies."""
    paced: Knobs | None = None
    """The knobs in force, where the route paces a daily budget."""
    draw: float | None = None
    """The random number that the router chose with."""
    plan: Plan | None = None
    cases_shown: int | None = None
    """As in the decision's record; None: no solved cases were found, or none looked for."""
    cases_withheld: float = 0.0
    hit: Hit | None = None
    directive: Directive | None = None
    similar: Similar | None = None
    """A semantic look-up that found nothing to serve."""
    missed: Miss | None = None
    """Why the semantic tier, where it was asked, had nothing to serve."""
    comparison: Comparison | None = None
    """A semantic hit drawn for an audit."""
    cache_state: str = "off"
    """off | hit | shared | semantic | miss | refused:<why>"""
    cache_key: bytes = b""
    attempts: list[Attempt] = []
    kept: Kept | None = None
    verdict: Verdict | None = None
    answered_by: str = ""
    response_id: str = ""
    answer_body: bytes = b""
    """The whole answer in the client's dialect, where it is needed after sending (cache, responses, text)."""
    status: int = 0
    error: str = ""
    upstream_s: float = 0.0
    """Time spent waiting for upstreams; the rest of the request's time is the gateway's own."""
    hedged: bool = False
    """True: its one hedge has been used."""
    flow: Relay | None = None
    """The stream that the client has begun to receive: it knows how to end with an error."""
    media: tuple[bytes, bytes] = JSON
    """The answer's content-type header, except where the gateway writes the stream itself."""

    @property
    def scope(self) -> str:
        """Of cached answers: requests that state a trade of quality for money share them only at the same trade."""
        options, scope = self.call.options, self.route.scope
        if not options.stated or self.route.router is None:
            return scope
        knobs = options.knobs
        if knobs.cost_weight is None and knobs.min_quality is None:
            return scope
        return f"{scope}\0\0{knobs.cost_weight}\0{knobs.min_quality}"

    @property
    def tokens(self) -> int:
        """Tokens used by all attempts, for rate limits."""
        tokens = 0
        for attempt in self.attempts:
            tokens += attempt.usage.total
        return tokens

    @property
    def cost_nanousd(self) -> int:
        """What every attempt of this request cost, whether its answer was kept or not."""
        cost = 0
        for attempt in self.attempts:
            cost += attempt.cost_nanousd
        return cost
