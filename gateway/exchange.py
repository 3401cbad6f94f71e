"""The state of one request while it is answered."""

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
    from gateway.money.ledger import Hold
    from gateway.money.limits import Taken
    from gateway.routes import Route
    from gateway.wire.chunk import Peek
    from gateway.wire.relay import Relay

NO_USAGE, NO_EVIDENCE = Usage(), Evidence()


class Attempt(msgspec.Struct):
    """One call of one deployment and its outcome."""

    model: str
    deployment: str
    started_s: float
    """Seconds after the request's arrival."""
    latency_s: float = 0.0
    first_byte_s: float | None = None
    status: int = 0
    failure: str = ""
    usage: Usage = NO_USAGE
    cost_nanousd: int = 0
    tier: str = ""
    """The service tier requested of the deployment; empty for none."""
    estimated: bool = False
    """True if the upstream reported no usage, so that tokens were estimated."""
    evidence: Evidence = NO_EVIDENCE
    confidence: float = nan
    """The cascade's confidence in the answer; NaN where no cascade reads it."""
    hedge: bool = False
    """True for a second attempt that was started because the first was slow."""
    gathered: int = 0
    """Number of questions in the same call, of which usage and cost are this one's share; 0 if it was asked alone."""
    job: Job | None = None
    """The attempt's part in its deployment's load, where requests are balanced by delay."""


class Kept(msgspec.Struct):
    """A whole answer from upstream, which the cascade's verdict may choose."""

    attempt: Attempt
    dialect: str
    body: bytes
    seen: Peek
    strip_logprobs: bool = False
    """True if the gateway requested its log-probabilities and the client didn't."""


class Exchange(msgspec.Struct):
    """A call and everything decided about it."""

    call: Call
    caller: Caller
    route: Route
    decision_id: str
    hold: Hold
    taken: Taken
    """What was taken from the rate limits; corrected by the actual usage when the request is settled."""
    worst: Mapping[str, int] = {}
    """The most that one attempt can cost, in nano-dollars, for each model that may be tried."""
    query: Query | None = None
    choice: Choice | None = None
    links: Chain = ()
    """Hashes of the conversation's prefixes, where the choice takes warm caches into account."""
    opening: bytes = b""
    """Hash of the prefix up to the user's first turn."""
    strategy_pick: Pick | None = None
    """The strategy drawn for this query, where the route learns strategies."""
    paced: Knobs | None = None
    """The knobs in force, where the route paces a daily budget."""
    draw: float | None = None
    """The random number that the router chose with."""
    plan: Plan | None = None
    cases_shown: int | None = None
    """Number of solved cases shown, 0 if they were withheld; None if none were found or looked for."""
    cases_withheld: float = 0.0
    """Probability with which cases were to be withheld from this request."""
    hit: Hit | None = None
    directive: Directive | None = None
    similar: Similar | None = None
    """The semantic look-up that found nothing to serve, for storing the new answer under its vector."""
    missed: Miss | None = None
    """Why the semantic tier had nothing to serve; None if it wasn't searched or had."""
    comparison: Comparison | None = None
    """The comparison to judge, if this semantic hit was drawn for an audit."""
    cache_state: str = "off"
    """off | hit | shared | semantic | miss | refused:<why>"""
    cache_key: bytes = b""
    attempts: list[Attempt] = []
    kept: Kept | None = None
    verdict: Verdict | None = None
    answered_by: str = ""
    response_id: str = ""
    answer_body: bytes = b""
    """The whole answer in the client's dialect; of a live stream only where it is stored (cache, responses, record)."""
    status: int = 0
    error: str = ""
    upstream_s: float = 0.0
    """Time spent waiting for upstreams; the rest of the request's time is the gateway's own."""
    hedged: bool = False
    """True once the request has used its one hedge."""
    flow: Relay | None = None
    """The relay of the stream that the client has begun to receive, which can end it with an error event."""
    media: tuple[bytes, bytes] = JSON
    """The answer's content-type header, except where the gateway writes the stream itself."""

    @property
    def scope(self) -> str:
        """The scope in which cached answers are shared: the route's, and per `cost_weight` and `min_quality` where the
        request states them.
        """
        options, scope = self.call.options, self.route.scope
        if not options.stated or self.route.router is None:
            return scope
        knobs = options.knobs
        if knobs.cost_weight is None and knobs.min_quality is None:
            return scope
        return f"{scope}\0\0{knobs.cost_weight}\0{knobs.min_quality}"

    def begun_s(self, attempt: Attempt) -> float:
        """Monotonic time at which one of the attempts was sent."""
        return self.call.received_s + attempt.started_s

    @property
    def tokens(self) -> int:
        """Tokens that all attempts used."""
        tokens = 0
        for attempt in self.attempts:
            tokens += attempt.usage.total
        return tokens

    @property
    def cost_nanousd(self) -> int:
        """Nano-dollars that all attempts cost, also those whose answers were dropped."""
        cost = 0
        for attempt in self.attempts:
            cost += attempt.cost_nanousd
        return cost
