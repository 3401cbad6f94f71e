"""The configuration: one frozen typed tree. What a value may be is part of its type.

`config_load` reads it from one TOML file and refuses unknown keys with their path;
`deploy/headgate.example.toml` holds every key with its meaning; a test keeps the two in step.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]
"""0: any free one."""
Count = Annotated[int, Meta(ge=1, le=10**12)]
Tokens = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]
MOST_USD = 1e9
"""A billion: in nano-dollars the journal's columns hold nine of them."""
Usd = Annotated[float, Meta(ge=0, le=MOST_USD)]
Share = Annotated[float, Meta(ge=0, le=1)]
Quality = Annotated[float, Meta(gt=0, le=1)]
Weight = Annotated[float, Meta(ge=0, le=1e9)]
Times = Annotated[float, Meta(ge=0, le=1000)]
ToolKind = Literal[
    "advisor", "browser_search", "code_execution", "code_interpreter", "container", "file_search", "image_generation",
    "mcp", "shell", "web_fetch",
]
"""As `gateway.wire.hosted_tools` counts them."""
Period = Literal["day", "week", "month", "total"]

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Secret(str):
    """A string that never shows itself in `repr`."""

    def __repr__(self) -> str:
        return "'***'" if self else "''"


class Server(_Section, frozen=True):
    host: str = "127.0.0.1"
    port: Port = 8080
    admin_port: Port = 8081
    admin_host: str = ""
    """Where the admin API listens; empty: as `host`."""
    tls_certificate: str = ""
    """PEM file with the chain, for both ports; empty: plain HTTP."""
    tls_key: str = ""
    tls_client_ca: str = ""
    """PEM file: only clients with a certificate of this authority connect; empty: anybody."""
    cors_origins: list[str] = []
    """Of pages that may ask from within a browser, such as https://chat.example.org; "*": any page."""
    workers: Count = 1
    max_body_bytes: Count = 32 * 1024 * 1024
    max_file_bytes: Count = 200 * 1024 * 1024
    """Of an upload to /v1/files, which waits on the disk and not in memory."""
    max_messages: Count = 4096
    request_timeout_s: Seconds = 600.0
    """Deadline of a request whose client names none."""
    first_byte_timeout_s: Seconds = 60.0
    stall_timeout_s: Seconds = 30.0
    """Longest silence inside an upstream's stream."""
    stream_keepalive_s: Annotated[float, Meta(ge=0)] = 15.0
    """A stream in which nothing came for so long gets a sign of life, before as much again has passed; 0: none."""
    drain_timeout_s: Annotated[float, Meta(ge=0)] = 30.0
    max_concurrency: Count = 2048
    """Requests in flight per worker; one more is answered 503."""
    batch_concurrency: Count = 16
    """Calls at once of one batch job that this gateway runs for a client."""
    cache_bytes: Count = 256 * 1024 * 1024
    """Bound on each worker's cache in memory."""
    run_dir: str = ".headgate"
    """Where spools and sockets live."""


class Storage(_Section, frozen=True):
    url: Secret = Secret("sqlite:///headgate.db")
    """May hold a password."""
    redis_url: Secret = Secret("")
    """Empty: limits, budgets and the cache are this machine's own."""
    redis_timeout_s: Seconds = 0.5
    """Longest wait for Redis to hold a budget; the shared cache is a miss after a tenth of a second."""
    redis_away: Literal["share", "refuse"] = "refuse"
    """Callers with a budget while Redis doesn't answer: 503, which keeps every budget to the cent, or each worker
    gives out its share of what was left, which may overspend by what others spent in the last second."""
    redis_vectors: bool = False
    """Redis 8 keeps the semantic cache's vectors in vector sets; else, and where Redis has none, every replica does."""
    keep_days: Annotated[float, Meta(gt=0)] = 30.0


class ProviderConfig(_Section, frozen=True):
    name: str
    kind: Literal["openai", "anthropic", "azure", "local", "scripted"]
    base_url: str = ""
    api_key: Secret = Secret("")
    api_version: str = ""
    """Azure only."""
    headers: dict[str, Secret] = {}
    """Sent with every request to this provider."""
    max_connections: Count = 512
    connect_timeout_s: Seconds = 5.0
    responses: bool | None = None
    """Whether it serves the Responses API itself, built-in tools and all; else chat's answers are put into its shape.
    None: OpenAI's own address does."""
    verify_tls: bool = True
    private_network: bool = False
    """True: the public name in `base_url` may resolve to an address of an inner network."""
    rpm: Count | None = None
    """Requests a minute that the account, or this machine, allows; batch jobs plan by it. None: unknown."""
    tpm: Count | None = None
    """Tokens a minute, in and out."""
    batch_discount: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Share of the price that the provider's own batch endpoint takes off; 0: it is not used."""
    batch_window_s: Seconds = 86_400.0
    """Time within which that endpoint promises the answers."""
    engine: Literal["", "headgate", "vllm", "sglang", "llama-server", "ray-serve", "transformers-serve"] = ""
    """Of the `openai` kind: the inference server that it is, whose queue and health are then read, and which is not
    asked for what it would silently ignore."""
    options: dict[str, object] = {}
    """Of the `local` and `scripted` kinds."""


class ModelConfig(_Section, frozen=True):
    """A deployment. Entries of the same name are deployments of one model."""

    name: str
    provider: str
    upstream_name: str = ""
    """Empty: the same as `name`."""
    input_usd_per_mtok: Usd = 0.0
    output_usd_per_mtok: Usd = 0.0
    cache_read_usd_per_mtok: Usd | None = None
    """None: as input."""
    cache_write_usd_per_mtok: Usd | None = None
    cache_write_1h_usd_per_mtok: Usd | None = None
    """Of Anthropic's writes that are kept for an hour. None: as cache_write."""
    reasoning_usd_per_mtok: Usd | None = None
    """None: as output."""
    audio_input_usd_per_mtok: Usd | None = None
    audio_output_usd_per_mtok: Usd | None = None
    web_search_usd: Usd = 0.0
    """Of one search of the web that the provider runs, beside its tokens."""
    unit_usd: Usd = 0.0
    """Of what is billed by the piece and not by tokens: a picture, a second of sound heard, a character spoken, a text
    moderated, a search among documents."""
    web_searches: Annotated[int, Meta(ge=0, le=1000)] = 0
    """That it runs for every answer, asked to or not, as models made for search do."""
    web_search_tokens: Tokens = 0
    """Most prompt tokens that one of its searches adds to a bill: what it found, and the prompt that is read again."""
    tool_usd: dict[ToolKind, Usd] = {}
    """Of one run of each other tool that the provider runs, beside its tokens; those left out cost nothing more."""
    tool_tokens: dict[ToolKind, Tokens] = {}
    """Most prompt tokens that one such run adds to a bill."""
    tier_prices: dict[str, Times] = {}
    """What each service tier costs, times the prices of tokens; "auto": where none is named. Those left out cost as
    `gateway.prices.TIER_PRICES` has it, or once the price."""
    told_cost: bool = False
    """True: an answer that says what it cost (`usage.cost`) is billed at that, where these prices make less."""
    context_tokens: Tokens = 0
    max_output_tokens: Count = 4096
    """What a request without its own limit is assumed to need, for the hold; Anthropic, which demands one, is told."""
    tools: bool = True
    images: bool = True
    json: bool = True
    hosted_tools: Literal["refuse", "leave_out"] = "refuse"
    """What becomes of tools that providers run themselves, such as web search, where this one's API has none."""
    rename: dict[str, str] = {}
    """Fields of requests that its API calls otherwise."""
    call_ids: Literal["auto", "any", "nine", "kept", "signed"] = "auto"
    """How it takes calls of tools in a chat. nine: with ids of nine letters and digits; kept: with what it gave beside
    them (`extra_content`); signed: with that, and none without. auto: as its name says, Mistral's and Gemini's."""
    leave_out: list[str] = []
    """Fields that its API refuses and that an answer can do without."""
    logprobs: bool = False
    """True: the upstream gives log-probabilities, which cascades read as confidence."""
    weight: Weight = 1.0
    """Share of this deployment among those of its model."""
    balance: Literal["weight", "delay"] = "weight"
    """How its deployments share requests; delay: each goes where it delays all answers least, by predicted lengths."""
    parallel: Annotated[int, Meta(ge=0)] = 0
    """Answers that this deployment writes at once, for `delay`; 0: unknown."""
    memory_tokens: Annotated[int, Meta(ge=0)] = 0
    """Of prompts and answers that it can hold at once, for `delay`; 0: unknown."""


class RouteConfig(_Section, frozen=True):
    name: str
    models: list[str]
    router: str = "default"
    rules: list[dict[str, object]] = []
    weights: dict[str, Weight] = {}
    cost_weight: Share | None = None
    min_quality: Quality | None = None
    budget_usd_per_day: Usd | None = None
    max_latency_s: Seconds | None = None
    max_cost_usd: Usd | None = None
    wait_usd_per_s: Usd | None = None
    """What a second of an answer's delay is worth: a model that is busy or slow then costs that much more."""
    cascade: str = "none"
    strategies: list[str] = []
    """Of cascade "learned": ways of answering, of which feedback teaches the one that a query deserves."""
    step_price: Share = 0.02
    """Score that each further call of a strategy must gain to be worth it."""
    accept_at: Quality | None = None
    """Least confidence that keeps a cheap answer; None: 0.5. Trained and certified cascades have their own."""
    speculate: bool = False
    """True: the next model of a cascade starts beside the first: faster, and paid for where the first is kept too."""
    judge: str = ""
    """Model that says whether an answer is right, of cascade "verify"; empty: the model that wrote it does."""
    most_wrong: Share = 0.0
    """Of the answers of a trained cascade, the share that may be wrong: where it can't be sure enough it gives none and
    the request ends with status 422, code `abstained`. 0: every question is answered."""
    reference: str = ""
    """Model that a certified cascade's `min_quality` is a share of; empty: the last of `models`."""
    certainty: Annotated[float, Meta(gt=0, lt=1)] = 0.95
    """Confidence of a certified cascade's promise."""
    measured_share: Share = 0.05
    """Of a certified cascade's requests: answered by both models and compared."""
    gather_ms: Annotated[float, Meta(ge=0, le=10_000)] = 0.0
    """How long a small question waits for others to be asked in the same call; 0: each is asked alone."""
    gather_most: Annotated[int, Meta(ge=2, le=100)] = 8
    """Questions in one such call."""
    gather_tokens: Count = 200
    """Longest question that may be gathered."""
    solved: str = ""
    """File of solved cases, one JSON object a line (question, answer, tenant), shown to models that are not expected to
    answer well without."""
    solved_most: Annotated[int, Meta(ge=1, le=32)] = 4
    """Cases shown to a model that is expected to fail; fewer the better it is, none where it is good enough."""
    solved_withheld: Share = 0.1
    """Of the requests that cases were found for, the share that is shown none, drawn at random, which tells whether
    cases help. 0: nothing does."""
    check: list[str] = []
    """Command that reads an answer on standard input; exit status 0 says it is right, 1 that it is wrong."""
    check_timeout_s: Seconds = 5.0
    """Longest that a check may take; then it has said nothing."""
    cache: Literal["none", "exact", "semantic"] = "none"
    cache_ttl_s: Seconds = 3600.0
    cache_judge: str = ""
    """Model that compares two answers, of the semantic cache or of a certified cascade; empty: only equal ones count as
    the same."""
    cache_eps: Annotated[float, Meta(gt=0, lt=1)] = 0.03
    """Bound on the false-hit rate of the semantic cache, above 0 and below 1."""
    cache_rule: str = ""
    """File that `python -m cache.pair_fit` learnt from labelled pairs of questions; empty: the route's own audits alone
    tell which questions want one answer."""
    fallback: list[str] = []
    """Routes or models tried when every model of this route has failed; cycles are refused."""
    default_model: str = ""
    """What answers when the router can't decide; empty: the last of `models`."""
    max_attempts: Count = 4
    retries: Annotated[int, Meta(ge=0)] = 1
    explore: Share = 0.0
    """Floor of the exploration probability, 0..1."""
    learn_every_s: Annotated[float, Meta(ge=0)] = 0.0
    """Seconds between turns of the learning loop (retrain, gate, shadow, canary, promote); 0: only `headgate learn`."""
    learn_router: Literal["linear", "ensemble", "knn", "factor", "domain", "clusters", "mlp"] = "linear"
    """Kind of router that the learning loop trains."""
    max_key_share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Most of what is learnt from that one API key's scores may be, where several keys give some; 1: not bounded."""
    hedge_after_s: Seconds | None = None
    """Start a second attempt when the first byte is this late; None: never."""
    hedge_max_share: Share = 0.05
    store_text: bool = False
    """True: prompts and answers are kept in the decision record."""
    rpm: Count | None = None
    tpm: Count | None = None


class KeyConfig(_Section, frozen=True):
    """A virtual key set by the file; keys made by `headgate keys` live in the database, hashed."""

    name: str
    key: Secret
    tenant: str = "default"
    models: list[str] = []
    """Routes and models it may use; empty: all."""
    rpm: Count | None = None
    tpm: Count | None = None
    budget_usd: Usd | None = None
    budget_period: Period = "month"
    knobs: bool = True
    """May set x-headgate-* knobs."""
    explore: bool = True


class TenantConfig(_Section, frozen=True):
    """A budget over all keys of a tenant. Tenants that aren't listed have none of their own."""

    name: str
    budget_usd: Usd | None = None
    budget_period: Period = "month"


class Auth(_Section, frozen=True):
    master_key: Secret = Secret("")
    """Empty: open on loopback only, refused elsewhere."""
    keys: list[KeyConfig] = []
    tenants: list[TenantConfig] = []


class Telemetry(_Section, frozen=True):
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "text"
    otlp_endpoint: str = ""
    """Empty: no spans. Otherwise OTLP over HTTP; needs the extra `otel`."""


class Embedding(_Section, frozen=True):
    """What routers trained upon another embedder than the shipped one read."""

    kind: Literal["static", "folder", "openai"] = "static"
    path: str = ""
    """Of a sentence-transformers folder: a BERT encoder whose pooling is the mean; or of one that
    `python -m cache.minilm_native` or `cache.minilm_onnx` wrote."""
    cache: bool = False
    """True: the semantic cache compares questions by it too."""
    base_url: str = ""
    """Of an OpenAI-kind endpoint, with its /v1."""
    api_key: Secret = Secret("")
    model: str = ""
    dims: Tokens = 0
    """Numbers in the endpoint's vectors."""
    timeout_s: Seconds = 2.0
    private_network: bool = False
    """True: the public name in `base_url` may resolve to an address of an inner network."""


class Config(_Section, frozen=True):
    server: Server = Server()
    storage: Storage = Storage()
    providers: list[ProviderConfig] = []
    models: list[ModelConfig] = []
    routes: list[RouteConfig] = []
    auth: Auth = Auth()
    telemetry: Telemetry = Telemetry()
    embedding: Embedding = Embedding()
