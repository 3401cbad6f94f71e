"""What one request has gathered on its way: the only thing that changes while it is answered."""

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
    """From the request's arrival."""
    latency_s: float = 0.0
    first_byte_s: float | None = None
    status: int = 0
    failure: str = ""
    usage: Usage = NO_USAGE
    cost_nanousd: int = 0
    estimated: bool = False
    """True: the upstream told no usage, so tokens were estimated."""
    evidence: Evidence = NO_EVIDENCE
    confidence: float = nan
    """What the cascade read out of the evidence."""
    hedge: bool = False
    """True: started beside a slow twin."""
    gathered: int = 0
    """Questions that were asked in the same call, where usage and cost are this one's share; 0: it was alone."""
    job: Job | None = None
    """Its place among what the deployment has under way, where that is weighed."""


class Kept(msgspec.Struct):
    """A whole answer from upstream that a verdict may keep."""

    attempt: Attempt
    dialect: str
    body: bytes
    seen: Peek
    strip_logprobs: bool = False
    """True: the log-probabilities in it were ours to ask for, not the client's."""


class Exchange(msgspec.Struct):
    """A call and everything decided about it."""

    call: Call
    caller: Caller
    route: Route
    decision_id: str
    hold: Hold
    taken: Taken
    """From rate limits; corrected by what was really used."""
    worst: Mapping[str, int] = {}
    """Nano-dollars that one attempt can cost at most, for each model that may be tried."""
    query: Query | None = None
    choice: Choice | None = None
    links: Chain = ()
    """The conversation's beginnings, where they matter to the choice."""
    strategy_pick: Pick | None = None
    """The strategy that was drawn for it, where the route learns that."""
    paced: Knobs | None = None
    """Knobs in force, where the route's purse had a say."""
    draw: float | None = None
    """What the router chose with."""
    plan: Plan | None = None
    hit: Hit | None = None
    directive: Directive | None = None
    similar: Similar | None = None
    """A semantic look-up that served nothing."""
    missed: Miss | None = None
    """Why the semantic tier, where it was asked, served nothing."""
    comparison: Comparison | None = None
    """A semantic hit drawn to be audited."""
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
    """Time spent waiting for upstreams: what is left of the request's time is ours."""
    hedged: bool = False
    """True: its one second attempt beside a slow first has been made."""
    flow: Relay | None = None
    """The stream the client has begun to see: it knows how an error must end it."""
    media: tuple[bytes, bytes] = JSON
    """The header that says what the answer is, unless it is a stream that is read here."""

    @property
    def scope(self) -> str:
        """Whose answers it may be given: who states a trade of quality for money shares with who states the same."""
        wishes, scope = self.call.wishes, self.route.scope
        if not wishes.stated or self.route.router is None:
            return scope
        knobs = wishes.knobs
        if knobs.cost_weight is None and knobs.min_quality is None:
            return scope
        return f"{scope}\0\0{knobs.cost_weight}\0{knobs.min_quality}"

    @property
    def tokens(self) -> int:
        """What every attempt used, for rate limits."""
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

