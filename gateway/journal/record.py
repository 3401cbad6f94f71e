"""The records of the journal: one immutable struct per kind of record.

A record's tag names its kind and schema version (`decision.1`), so that a reader never guesses. Fields are only ever
added, with defaults; a change of meaning needs a new tag. Unknown values are None (or NaN, which JSON has as null).
Nothing is validated here: whoever makes a record decides what it may hold (text only where the route stores text).
"""

from __future__ import annotations

import secrets
import time

import msgspec


class _Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    pass


class _Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag_field="t"):
    pass


class CandidateRecord(_Value, frozen=True):
    """The router's estimates for one eligible model."""

    model: str
    quality: float | None = None
    quality_sd: float | None = None
    cost_usd: float | None = None
    latency_s: float | None = None
    probability: float = 0.0
    """Probability with which this model was chosen; the probabilities of a decision's candidates sum to 1."""


class EvidenceRecord(_Value, frozen=True):
    """Signals about the quality of one answer; never its text."""

    mean_logprob: float | None = None
    min_logprob: float | None = None
    sum_logprob: float | None = None
    output_tokens: int = 0
    refused: bool | None = None
    schema_valid: bool | None = None
    tools_parse: bool | None = None
    checks_passed: bool | None = None
    agreement: float | None = None
    judged: float | None = None
    confidence: float | None = None
    """P(correct) or the raw confidence the cascade compared with its threshold."""


INPUT_BUCKETS = ("input", "cache_read", "cache_write", "cache_write_1h", "audio_input")
OUTPUT_BUCKETS = ("output", "reasoning", "audio_output")
"""Names of the token counts in an attempt's `usage`."""


class AttemptRecord(_Value, frozen=True):
    """One call of one deployment, failed ones included."""

    model: str
    deployment: str = ""
    """provider/upstream name."""
    started_s: float = 0.0
    """Seconds after the request was received."""
    latency_s: float | None = None
    ttft_s: float | None = None
    status: int = 0
    """HTTP status of the upstream; 0 where there was none."""
    failure: str = ""
    """One of gateway.errors.FAILURES; empty where it answered."""
    usage: dict[str, int] = {}
    """Tokens by `INPUT_BUCKETS` and `OUTPUT_BUCKETS`; the provider's searches as web_search, items billed by the piece
    as units, and uses of the provider's other tools by the kinds of a model's `tool_usd`.
    """
    cost_nanousd: int = 0
    estimated: bool = False
    """Whether tokens and cost are estimates, because the upstream reported no complete usage."""
    gathered: int = 0
    """Number of questions in the same call, of whose usage and cost this is a share; 0 where it was asked alone."""
    evidence: EvidenceRecord | None = None

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of input and of output, of all buckets together."""
        into = out = 0
        for bucket, count in self.usage.items():
            if bucket in INPUT_BUCKETS:
                into += count
            elif bucket in OUTPUT_BUCKETS:
                out += count
        return into, out


class DecisionRecord(_Record, frozen=True, tag="decision.1"):
    """One request: its features, the candidates, the choice with its propensity, and the outcome."""

    id: str
    time_s: float
    """Unix time at which the request was received."""
    request_id: str = ""
    response_id: str = ""
    """The id in the answer's body, which clients may name in feedback."""
    tenant: str = ""
    key_id: str = ""
    surface: str = ""
    route: str = ""
    requested_model: str = ""

    features_version: str = ""
    input_tokens: int = 0
    """Estimate made before the call."""
    turns: int = 0
    tools: int = 0
    images: int = 0
    wants_json: bool = False
    vector: bytes = b""
    """float16, little-endian, for retraining without text; `gateway.journal.vectors` reads it."""
    doubled: int = 0
    """Size of the vector's first block where the second block equals it and only one of them is stored; else 0."""
    max_output_tokens: int | None = None
    """The request's own limit; None where it has none."""
    knobs: dict[str, float] = {}
    """The request's own knobs; the route's knobs were used where it had none."""
    explore: bool = True
    """False where its key opted out of exploration."""
    draw: float | None = None
    """The random number in [0, 1) with which the router chose; it makes the choice repeatable."""

    candidates: tuple[CandidateRecord, ...] = ()
    excluded: dict[str, str] = {}
    model: str = ""
    """The router's choice; empty where there was none (a cache hit, a refusal)."""
    propensity: float | None = None
    router: str = ""
    """name@version."""
    reason: str = ""
    plan: tuple[str, ...] = ()
    """Models of the cascade in order; the first is `model`."""
    thresholds: tuple[float | None, ...] = ()
    """Least confidence with which each step's answer is kept; None: any."""
    strategy: str = ""
    """The strategy that was drawn where the route learns which one to use; empty where it has only one."""
    strategies: dict[str, float] = {}
    """Probability of each strategy."""
    cases_shown: int | None = None
    """Largest number of solved cases shown to a model of the plan. 0: some were found but withheld, to measure their
    effect. None: none were found or searched for.
    """
    cases_withheld: float = 0.0
    """Probability with which the cases found were withheld."""

    attempts: tuple[AttemptRecord, ...] = ()
    verdict: str = ""
    """How the cascade ended, as in cascade.types.Verdict.reason."""
    answered_model: str = ""
    status: int = 0
    """HTTP status that the client got."""
    error: str = ""
    """Error code that the client got."""
    stream: bool = False
    cache: str = ""
    """hit | shared | semantic | miss | off | refused:why"""
    cache_why: dict[str, object] = {}
    saved_nanousd: int = 0
    """Cost that a cache hit saved."""
    held_nanousd: int = 0
    cost_nanousd: int = 0
    """Settled cost of all attempts together."""
    latency_s: float | None = None
    ttft_s: float | None = None
    overhead_ms: float | None = None
    prompt_text: str = ""
    """Only where the route stores text."""
    answer_text: str = ""

    job: str = ""
    """Id of the batch job that made the call; empty: none."""
    job_index: int = 0
    """Number of the prompt's line in the job's input."""
    job_final: bool = True
    """False where the prompt will be asked again."""
    job_answer: bytes = b""
    """The answer's body, so that one write stores both the payment and the answer. The shipper moves it to `job_items`.
    """

    @property
    def from_cache(self) -> bool:
        """Whether it was answered by the cache or by another request's call, without a call of its own."""
        return self.cache in ("hit", "shared", "semantic")

    @property
    def chosen(self) -> CandidateRecord | None:
        """The candidate that the router chose; None where there was no choice."""
        return next((one for one in self.candidates if one.model == self.model), None)

    def answer_of(self, model: str) -> AttemptRecord | None:
        """The model's latest attempt that succeeded; None where there is none."""
        return next((one for one in reversed(self.attempts) if one.model == model and not one.failure), None)


ANY_TENANT = ""
"""The tenant of the operator's feedback, which takes the tenant of the decision it is about."""


class FeedbackRecord(_Record, frozen=True, tag="feedback.1"):
    """A score, label or comment on an answer. It names its decision by any one of three ids."""

    id: str
    time_s: float
    tenant: str = ""
    decision_id: str = ""
    response_id: str = ""
    request_id: str = ""
    score: float | None = None
    """In [0, 1]; None where there is only a label or a comment."""
    label: str = ""
    comment: str = ""
    source: str = "user"
    """user | check | judge, or a name of the caller's choice."""


class ResponseRecord(_Record, frozen=True, tag="response.1"):
    """A stored /v1/responses object, or its deletion. One without a previous response holds its whole conversation."""

    id: str
    time_s: float
    decision_id: str = ""
    tenant: str = ""
    model: str = ""
    previous_response_id: str = ""
    input: bytes = b"[]"
    """JSON of the input items; where there is a previous response, an object whose `adds` are the items of this turn.
    """
    output: bytes = b"{}"
    """JSON of the response object."""
    deleted: bool = False


class JobStartRecord(_Record, frozen=True, tag="job_start.1"):
    """A batch job is about to ask one of its prompts, which may cost `worst_nanousd` even if no decision follows."""

    job: str
    index: int
    time_s: float
    worst_nanousd: int = 0


class EarlierSecret(_Value, frozen=True):
    """A key's secret from before a rotation, which is accepted until `until_s`."""

    key_hash: str
    until_s: float


class KeyRecord(_Record, frozen=True, tag="key.1"):
    """A virtual key made at run time. Only its hash is kept."""

    id: str
    name: str
    key_hash: str
    """gateway.keys.hash_key(plaintext)."""
    prefix: str
    """First characters of the plaintext, to distinguish keys in a list."""
    created_s: float
    tenant: str = "default"
    models: tuple[str, ...] = ()
    rpm: int | None = None
    tpm: int | None = None
    budget_usd: float | None = None
    budget_period: str = "month"
    knobs: bool = True
    explore: bool = True
    expires_s: float | None = None
    revoked_s: float | None = None
    earlier: tuple[EarlierSecret, ...] = ()

    @property
    def earlier_until_s(self) -> float | None:
        """Unix time until which a secret from before a rotation is accepted; None where there is none."""
        return max((one.until_s for one in self.earlier), default=None)


class AuditRecord(_Record, frozen=True, tag="audit.1"):
    """One change, with its author and time."""

    id: str
    time_s: float
    actor: str
    action: str
    target: str = ""
    detail: dict[str, object] = {}


Record = DecisionRecord | FeedbackRecord | ResponseRecord | AuditRecord | JobStartRecord
"""The kinds of records in a spool. Keys are written to the store directly."""


def new_id(kind: str) -> str:
    """An id that sorts by time: `kind`, milliseconds in hexadecimal, and 64 random bits."""
    return f"{kind}_{int(time.time() * 1000):012x}{secrets.token_hex(8)}"
