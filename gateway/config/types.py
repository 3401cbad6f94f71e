"""The configuration: one frozen tree of typed sections, whose types state which values are valid.

gateway/config/load.py reads it from one TOML file and refuses unknown keys with their path.
`deploy/headgate.example.toml` has every key with its meaning; a test keeps the two in step.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]
"""A TCP port; 0 for any free one."""
Count = Annotated[int, Meta(ge=1, le=10**12)]
Tokens = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]
MOST_USD = 1e9
"""A billion dollars. The journal's columns of nano-dollars (64 bits) can add up nine of these."""
Usd = Annotated[float, Meta(ge=0, le=MOST_USD)]
Share = Annotated[float, Meta(ge=0, le=1)]
Quality = Annotated[float, Meta(gt=0, le=1)]
Weight = Annotated[float, Meta(ge=0, le=1e9)]
Times = Annotated[float, Meta(ge=0, le=1000)]
ToolKind = Literal[
    "advisor", "browser_search", "code_execution", "code_interpreter", "container", "file_search", "image_generation",
    "mcp", "shell", "web_fetch",
]
"""The tools that `gateway.wire.hosted_tools` counts."""
Period = Literal["day", "week", "month", "total"]

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Secret(str):
    """A string that `repr` masks."""

    def __repr__(self) -> str:
        return "'***'" if self else "''"


class Server(_Section, frozen=True):
    host: str = "127.0.0.1"
    port: Port = 8080
    admin_port: Port = 8081
    admin_host: str = ""
    """Address on which the admin API listens; empty for `host`."""
    tls_certificate: str = ""
    """PEM file with the certificate chain for both ports; empty for plain HTTP."""
    tls_key: str = ""
    tls_client_ca: str = ""
    """PEM file of the authority whose certificates clients need to connect; empty lets any client connect."""
    cors_origins: list[str] = []
    """Origins of web pages that may send requests, such as https://chat.example.org; "*" for any page."""
    workers: Count = 1
    max_body_bytes: Count = 32 * 1024 * 1024
    max_file_bytes: Count = 200 * 1024 * 1024
    """Largest upload to /v1/files. Uploads are buffered on disk, not in memory."""
    max_messages: Count = 4096
    request_timeout_s: Seconds = 600.0
    """Deadline of a request; a client's own read timeout can only shorten it."""
    first_byte_timeout_s: Seconds = 60.0
    stall_timeout_s: Seconds = 30.0
    """Longest silence within an upstream's stream."""
    stream_keepalive_s: Annotated[float, Meta(ge=0)] = 15.0
    """Seconds of silence after which a client's stream gets a keep-alive comment, within the same time again; 0 for
    none."""
    drain_timeout_s: Annotated[float, Meta(ge=0)] = 30.0
    max_concurrency: Count = 2048
    """Most requests in flight per worker; further ones are answered 503."""
    batch_concurrency: Count = 16
    """Most concurrent calls of one batch job that this gateway runs for a client."""
    cache_bytes: Count = 256 * 1024 * 1024
    """Size of the answer cache: of one worker's in memory, or of the file that several workers share."""
    run_dir: str = ".headgate"
    """Folder of spools, sockets and other files of the running gateway."""


class Storage(_Section, frozen=True):
    url: Secret = Secret("sqlite:///headgate.db")
    """URL of the database, which may contain a password."""
    redis_url: Secret = Secret("")
    """URL of the Redis that replicas share; empty: limits, budgets and the cache belong to this machine alone."""
    redis_timeout_s: Seconds = 0.5
    """Longest wait for Redis to hold a budget. The shared cache waits at most a tenth of a second."""
    redis_away: Literal["share", "refuse"] = "refuse"
    """What callers with a budget get while Redis doesn't answer. "refuse": status 503, so that no budget is overspent.
    "share": each worker spends its share of the rest, which may overspend by what others spent in the last second."""
    redis_vectors: bool = False
    """True: the semantic cache's vectors are kept in Redis's vector sets (Redis 8). False, or where Redis has none:
    every replica keeps them in memory."""
    keep_days: Annotated[float, Meta(gt=0)] = 30.0
    """Days after which the journal's records are deleted."""


class ProviderConfig(_Section, frozen=True):
    name: str
    kind: Literal["openai", "anthropic", "azure", "local", "scripted"]
    base_url: str = ""
    api_key: Secret = Secret("")
    api_version: str = ""
    """Azure's `api-version`; for the kind "azure" only."""
    headers: dict[str, Secret] = {}
    """Sent with every request to this provider."""
    max_connections: Count = 512
    connect_timeout_s: Seconds = 5.0
    responses: bool | None = None
    """True if the provider serves the Responses API itself, with its built-in tools; False: the gateway translates to
    and from the chat API. None: True for OpenAI's own address only."""
    verify_tls: bool = True
    private_network: bool = False
    """True: the public name in `base_url` may resolve to an address of a private network."""
    rpm: Count | None = None
    """Requests per minute that the account or machine allows, by which batch jobs are planned; None if unknown."""
    tpm: Count | None = None
    """Input and output tokens per minute, as `rpm`."""
    batch_discount: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Discount of the provider's own batch endpoint, as a share of the price; 0: that endpoint is not used."""
    batch_window_s: Seconds = 86_400.0
    """Seconds within which the provider's batch endpoint promises answers."""
    engine: Literal["", "headgate", "vllm", "sglang", "llama-server", "ray-serve", "transformers-serve"] = ""
    """The inference server behind a provider of the kind "openai". The gateway then reads its queue and health, and
    refuses what this server would silently ignore."""
    options: dict[str, object] = {}
    """Options of the kinds "local" and "scripted"."""


class ModelConfig(_Section, frozen=True):
    """A deployment of a model. Entries with the same name are deployments of the same model."""

    name: str
    provider: str
    upstream_name: str = ""
    """The model's name at the provider; empty for `name`."""
    input_usd_per_mtok: Usd = 0.0
    output_usd_per_mtok: Usd = 0.0
    cache_read_usd_per_mtok: Usd | None = None
    """None for the input price."""
    cache_write_usd_per_mtok: Usd | None = None
    cache_write_1h_usd_per_mtok: Usd | None = None
    """Price of Anthropic's cache writes with a time to live of one hour; None for the `cache_write` price."""
    reasoning_usd_per_mtok: Usd | None = None
    """None for the output price."""
    audio_input_usd_per_mtok: Usd | None = None
    audio_output_usd_per_mtok: Usd | None = None
    web_search_usd: Usd = 0.0
    """Price of one web search that the provider runs, in addition to its tokens."""
    unit_usd: Usd = 0.0
    """Price of one unit of what is not billed by tokens: an image, a second of transcribed audio, a character of
    speech, a moderated text, a search over documents."""
    web_searches: Annotated[int, Meta(ge=0, le=1000)] = 0
    """Web searches that the model runs for every answer, requested or not, as search models do."""
    web_search_tokens: Tokens = 0
    """Most input tokens that one web search adds to the bill: its results, and the prompt that is read again."""
    tool_usd: dict[ToolKind, Usd] = {}
    """Price of one run of each other tool that the provider runs, in addition to its tokens; 0 for tools left out."""
    tool_tokens: dict[ToolKind, Tokens] = {}
    """Most input tokens that one run of such a tool adds to the bill."""
    tier_prices: dict[str, Times] = {}
    """Factor on the token prices for each service tier; "auto" is for requests that name none. Tiers left out have the
    factor of `gateway.money.prices.TIER_PRICES`, else 1."""
    told_cost: bool = False
    """True: an answer that reports its cost (`usage.cost`) is charged that, if it is more than by these prices."""
    context_tokens: Tokens = 0
    """Longest prompt and answer together that the model takes; 0 if unknown."""
    max_output_tokens: Count = 4096
    """Output tokens assumed in the hold of a request without its own limit. Anthropic's API, which requires a limit, is
    sent it."""
    tools: bool = True
    images: bool = True
    json: bool = True
    hosted_tools: Literal["refuse", "leave_out"] = "refuse"
    """What happens to requested tools that providers run themselves, such as web search, if this API has none."""
    rename: dict[str, str] = {}
    """Request fields that this API names differently, each with its name there."""
    call_ids: Literal["auto", "any", "nine", "kept", "signed"] = "auto"
    """Which tool calls the chat API accepts. nine: with ids of nine letters and digits. kept: with the `extra_content`
    that it returned beside them. signed: with that, and no call without it. auto: by the model's name, for Mistral's
    and Gemini's models."""
    leave_out: list[str] = []
    """Request fields to drop, because this API refuses them and an answer doesn't depend on them."""
    logprobs: bool = False
    """True if the upstream returns log-probabilities, which cascades read as confidence."""
    weight: Weight = 1.0
    """Weight of this deployment in the draw among those of its model."""
    balance: Literal["weight", "delay"] = "weight"
    """How deployments of the model share requests. weight: by their weights. delay: each request goes where it delays
    all answers least, by predicted lengths."""
    parallel: Annotated[int, Meta(ge=0)] = 0
    """Answers that this deployment generates at the same time, for balance = "delay"; 0 if unknown."""
    memory_tokens: Annotated[int, Meta(ge=0)] = 0
    """Tokens of prompts and answers that it can hold at the same time, for balance = "delay"; 0 if unknown."""


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
    """Dollars that one second of an answer's delay costs in the choice of a model; None: delay costs nothing."""
    cascade: str = "none"
    strategies: list[str] = []
    """For cascade "learned": the strategies among which it chooses for each query, by what feedback taught it."""
    step_price: Share = 0.02
    """Score that each further call of a strategy must gain to be worth its cost."""
    accept_at: Quality | None = None
    """Least confidence for keeping a cheap answer; None for 0.5. Trained and certified cascades have their own."""
    speculate: bool = False
    """True: a cascade's next model starts together with the first. That is faster, and paid for even if the first
    answer is kept."""
    judge: str = ""
    """For cascade "verify": the model that judges whether an answer is right; empty: the model that wrote it."""
    most_wrong: Share = 0.0
    """For a trained cascade: the share of its answers that may be wrong. Where it isn't sure enough it abstains: the
    request ends with status 422 and code `abstained`. 0: every question is answered."""
    reference: str = ""
    """For a certified cascade: the model of whose quality `min_quality` is a share; empty for the last of `models`."""
    certainty: Annotated[float, Meta(gt=0, lt=1)] = 0.95
    """Confidence of a certified cascade's promise."""
    measured_share: Share = 0.05
    """For a certified cascade: the share of requests that both models answer, to compare them."""
    gather_ms: Annotated[float, Meta(ge=0, le=10_000)] = 0.0
    """Milliseconds for which a small question waits for others, to be asked in one call; 0: each is asked alone."""
    gather_most: Annotated[int, Meta(ge=2, le=100)] = 8
    """Most questions in one such call."""
    gather_tokens: Count = 200
    """Tokens of the longest question that may be gathered."""
    solved: str = ""
    """File of solved cases, one JSON object a line (question, answer, tenant). They are shown to models that are not
    expected to answer well without them."""
    solved_most: Annotated[int, Meta(ge=1, le=32)] = 4
    """Cases shown to a model that is expected to fail. The better the model, the fewer; a good enough one gets none."""
    solved_withheld: Share = 0.1
    """Share of the requests with matching cases that is shown none, drawn at random, to measure whether cases help. 0:
    this isn't measured."""
    check: list[str] = []
    """Command that reads an answer on standard input; exit status 0 means that it is right, 1 that it is wrong."""
    check_timeout_s: Seconds = 5.0
    """Seconds after which a check is ended without a result."""
    cache: Literal["none", "exact", "semantic"] = "none"
    cache_ttl_s: Seconds = 3600.0
    cache_judge: str = ""
    """Model that compares two answers of the semantic cache or a certified cascade; empty: only equal answers count as
    the same."""
    cache_eps: Annotated[float, Meta(gt=0, lt=1)] = 0.03
    """Bound on the semantic cache's false-hit rate."""
    cache_rule: str = ""
    """File that `python -m cache.pair_fit` wrote, learned from labelled pairs of questions; empty: only the route's own
    audits tell which questions have the same answer."""
    fallback: list[str] = []
    """Routes or models to try when every model of this route has failed. Cycles are refused."""
    default_model: str = ""
    """Model that answers when the router can't decide; empty for the last of `models`."""
    max_attempts: Count = 4
    retries: Annotated[int, Meta(ge=0)] = 1
    explore: Share = 0.0
    """Least probability of exploration."""
    learn_every_s: Annotated[float, Meta(ge=0)] = 0.0
    """Seconds between rounds of the learning loop (retrain, gate, shadow, canary, promote); 0: only `headgate learn`
    runs one."""
    learn_router: Literal["linear", "ensemble", "knn", "factor", "domain", "clusters", "mlp"] = "linear"
    """Kind of router that the learning loop trains."""
    max_key_share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Largest share of the learning data that one API key's scores may make up, if several keys give scores; 1: not
    bounded."""
    hedge_after_s: Seconds | None = None
    """Seconds without a first byte after which a second attempt starts (a hedge); None: never."""
    hedge_max_share: Share = 0.05
    """Largest share of requests that may be hedged."""
    store_text: bool = False
    """True: prompts and answers are stored in the decision record."""
    rpm: Count | None = None
    tpm: Count | None = None


class KeyConfig(_Section, frozen=True):
    """A virtual key of the configuration file. Keys made by `headgate keys` are stored in the database, hashed."""

    name: str
    key: Secret
    tenant: str = "default"
    models: list[str] = []
    """Routes and models that the key may use; empty for all."""
    rpm: Count | None = None
    tpm: Count | None = None
    budget_usd: Usd | None = None
    budget_period: Period = "month"
    knobs: bool = True
    """True if the key's requests may set x-headgate-* knobs."""
    explore: bool = True
    """True if the router may explore on the key's requests."""


class TenantConfig(_Section, frozen=True):
    """The budget of all keys of a tenant together. Tenants that aren't listed have no such budget."""

    name: str
    budget_usd: Usd | None = None
    budget_period: Period = "month"


class Auth(_Section, frozen=True):
    master_key: Secret = Secret("")
    """Key of the administrator; empty: open on loopback, refused on any other address."""
    keys: list[KeyConfig] = []
    tenants: list[TenantConfig] = []


class Telemetry(_Section, frozen=True):
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "text"
    otlp_endpoint: str = ""
    """Endpoint to send spans to by OTLP over HTTP, which needs the extra `otel`; empty: no spans."""


class Embedding(_Section, frozen=True):
    """The embedder of routers that were trained with another one than the shipped table."""

    kind: Literal["static", "folder", "openai"] = "static"
    path: str = ""
    """For the kind "folder": a sentence-transformers folder with a BERT encoder and mean pooling, or a folder that
    `python -m cache.minilm_native` or `cache.minilm_onnx` wrote."""
    cache: bool = False
    """True: the semantic cache uses this embedder too."""
    base_url: str = ""
    """For the kind "openai": URL of the endpoint, with its /v1."""
    api_key: Secret = Secret("")
    model: str = ""
    dims: Tokens = 0
    """Dimension of the endpoint's vectors."""
    timeout_s: Seconds = 2.0
    private_network: bool = False
    """True: the public name in `base_url` may resolve to an address of a private network."""


class Config(_Section, frozen=True):
    server: Server = Server()
    storage: Storage = Storage()
    providers: list[ProviderConfig] = []
    models: list[ModelConfig] = []
    routes: list[RouteConfig] = []
    auth: Auth = Auth()
    telemetry: Telemetry = Telemetry()
    embedding: Embedding = Embedding()
