"""What the journal remembers: one immutable value per kind of record.

A record's tag names its kind and schema version (`decision.1`), so a reader never guesses. Fields are only
ever added, with defaults; a change of meaning is a new tag. Unknown is None (or NaN, in JSON null).
Refuses nothing: what a record may hold was decided by whoever made it (text only where the route says so).
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
    """What the router expected of one eligible model."""

    model: str
    quality: float | None = None
    quality_sd: float | None = None
    cost_usd: float | None = None
    latency_s: float | None = None
    probability: float = 0.0
    """With which this model was to be chosen; over all candidates of a decision it sums to 1."""


class EvidenceRecord(_Value, frozen=True):
    """What an answer showed about its own worth; never its text."""

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
"""Names under which an attempt's `usage` tells tokens."""


class AttemptRecord(_Value, frozen=True):
    """One call of one deployment, failed ones included."""

    model: str
    deployment: str = ""
    """provider/upstream name."""
    started_s: float = 0.0
    """Seconds after the request came in."""
    latency_s: float | None = None
    ttft_s: float | None = None
    status: int = 0
    """HTTP status of the upstream; 0: none came."""
    failure: str = ""
    """One of gateway.errors.FAILURES; empty: it answered."""
    usage: dict[str, int] = {}
    """Tokens by `INPUT_BUCKETS` and `OUTPUT_BUCKETS`, the searches that the provider ran, as web_search, what is billed
    by the piece, as units, and runs of the provider's other tools by the kinds of a model's `tool_usd`."""
    cost_nanousd: int = 0
    estimated: bool = False
    """The upstream told no whole usage, so tokens and cost are estimates."""
    gathered: int = 0
    """Questions asked in the same call, of which usage and cost are this one's share; 0: it was asked alone."""
    evidence: EvidenceRecord | None = None


class DecisionRecord(_Record, frozen=True, tag="decision.1"):
    """One request: what was known, who could have answered, who was chosen how probably, what came."""

    id: str
    time_s: float
    """Unix time at which the request came in."""
    request_id: str = ""
    response_id: str = ""
    """The id inside the answer's body, which clients quote in feedback."""
    tenant: str = ""
    key_id: str = ""
    surface: str = ""
    route: str = ""
    requested_model: str = ""

    features_version: str = ""
    input_tokens: int = 0
    """Estimated before the call."""
    turns: int = 0
    tools: int = 0
    images: int = 0
    wants_json: bool = False
    vector: bytes = b""
    """float16, little-endian, for retraining without text; `gateway.journal.vectors` reads it."""
    doubled: int = 0
    """So many of its first numbers stand twice, one block after the other, and are kept once."""
    max_output_tokens: int | None = None
    """The request's own limit."""
    knobs: dict[str, float] = {}
    """The request's own knobs; the route's were in force where it had none."""
    explore: bool = True
    """False: its key opted out of exploration."""
    draw: float | None = None
    """The random number, in [0, 1), that the router chose with: it makes the choice repeatable."""

    candidates: tuple[CandidateRecord, ...] = ()
    excluded: dict[str, str] = {}
    model: str = ""
    """Chosen by the router; empty: nothing was chosen (a cache hit, a refusal)."""
    propensity: float | None = None
    router: str = ""
    """name@version."""
    reason: str = ""
    plan: tuple[str, ...] = ()
    """Models of the cascade in order; the first is `model`."""
    thresholds: tuple[float | None, ...] = ()
    """Least confidence that keeps each step's answer; None: any."""
    strategy: str = ""
    """Drawn from those that the route learns among; empty: it has one."""
    strategies: dict[str, float] = {}
    """Each one's probability."""
    cases_shown: int | None = None
    """Solved cases before the question of whichever model of the plan was to see most; 0: some were found, and were
    withheld to measure their worth. None: none were found, or none looked for."""
    cases_withheld: float = 0.0
    """With which probability those found were to be withheld."""

    attempts: tuple[AttemptRecord, ...] = ()
    verdict: str = ""
    """How the climb ended, as in cascade.types.Verdict.reason."""
    answered_model: str = ""
    status: int = 0
    """HTTP status the client saw."""
    error: str = ""
    """Error code the client saw."""
    stream: bool = False
    cache: str = ""
    """hit | shared | semantic | miss | off | refused:why"""
    cache_why: dict[str, object] = {}
    saved_nanousd: int = 0
    """What a cache hit didn't cost."""
    held_nanousd: int = 0
    cost_nanousd: int = 0
    """Settled: all attempts together."""
    latency_s: float | None = None
    ttft_s: float | None = None
    overhead_ms: float | None = None
    prompt_text: str = ""
    """Only where the route stores text."""
    answer_text: str = ""

    job: str = ""
    """Batch job this call belongs to; empty: none."""
    job_index: int = 0
    """Which of its prompts: the line of the job's input."""
    job_final: bool = True
    """False: the prompt will be asked again."""
    job_answer: bytes = b""
    """The answer's body, so that one write keeps both what was paid and what was bought. Moves to the job's rows."""

    @property
    def from_cache(self) -> bool:
        """True: answered by the cache or by another request's call; no model was called for it."""
        return self.cache in ("hit", "shared", "semantic")

    @property
    def chosen(self) -> CandidateRecord | None:
        """What was expected of the model that the router chose."""
        return next((one for one in self.candidates if one.model == self.model), None)

    def answer_of(self, model: str) -> AttemptRecord | None:
        """That model's latest attempt that answered."""
        return next((one for one in reversed(self.attempts) if one.model == model and not one.failure), None)


ANY_TENANT = ""
"""Of the operator's feedback: it takes the tenant of the decision that it speaks of."""


class FeedbackRecord(_Record, frozen=True, tag="feedback.1"):
    """What somebody or something says an answer was worth. Names its decision by any one of three ids."""

    id: str
    time_s: float
    tenant: str = ""
    decision_id: str = ""
    response_id: str = ""
    request_id: str = ""
    score: float | None = None
    """0..1; None: a label or a comment only."""
    label: str = ""
    comment: str = ""
    source: str = "user"
    """user | check | judge, or the caller's own word."""


class ResponseRecord(_Record, frozen=True, tag="response.1"):
    """A stored /v1/responses object, or its deletion. One that continues none holds its whole conversation."""

    id: str
    time_s: float
    decision_id: str = ""
    tenant: str = ""
    model: str = ""
    previous_response_id: str = ""
    input: bytes = b"[]"
    """JSON of the input items; where it continues another, an object whose `adds` are those of its own turn."""
    output: bytes = b"{}"
    """JSON of the response object."""
    deleted: bool = False


class JobStartRecord(_Record, frozen=True, tag="job_start.1"):
    """A batch job is about to ask one of its prompts: what may be paid though no decision ever tells of it."""

    job: str
    index: int
    time_s: float
    worst_nanousd: int = 0


class EarlierSecret(_Value, frozen=True):
    """One that a key had before it was rotated, which opens the gateway as it until then."""

    key_hash: str
    until_s: float


class KeyRecord(_Record, frozen=True, tag="key.1"):
    """A virtual key made at run time. Only its hash is kept."""

    id: str
    name: str
    key_hash: str
    """gateway.keys.hash_key(plaintext)."""
    prefix: str
    """First characters, to tell keys apart in a list."""
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
        """Until when a secret of before the last rotation may be used; None: it was never rotated."""
        return max((one.until_s for one in self.earlier), default=None)


class AuditRecord(_Record, frozen=True, tag="audit.1"):
    """Who changed what, when."""

    id: str
    time_s: float
    actor: str
    action: str
    target: str = ""
    detail: dict[str, object] = {}


Record = DecisionRecord | FeedbackRecord | ResponseRecord | AuditRecord | JobStartRecord
"""What a spool holds. Keys are written to the store directly."""


def new_id(kind: str) -> str:
    """An id that sorts by time: `kind`, milliseconds in hex, 64 random bits."""
    return f"{kind}_{int(time.time() * 1000):012x}{secrets.token_hex(8)}"
