"""The configuration: one TOML file, one frozen typed tree, unknown keys refused with their path.

`deploy/headgate.example.toml` holds every key with its meaning; a test keeps the two in step.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Secret(str):
    """A string that never shows itself in `repr`."""

    def __repr__(self) -> str:
        return "'***'" if self else "''"


class Server(_Section):
    host: str = "127.0.0.1"
    port: int = 8080
    admin_port: int = 8081
    workers: int = 1
    max_body_bytes: int = 32 * 1024 * 1024
    max_messages: int = 4096
    request_timeout_s: float = 600.0
    """Deadline of a request whose client names none."""
    first_byte_timeout_s: float = 60.0
    stall_timeout_s: float = 30.0
    """Longest silence inside an upstream's stream."""
    drain_timeout_s: float = 30.0
    max_concurrency: int = 2048
    """Requests in flight per worker; one more is answered 503."""
    run_dir: str = ".headgate"
    """Where spools and sockets live."""


class Storage(_Section):
    url: str = "sqlite:///headgate.db"
    redis_url: str = ""
    keep_days: float = 30.0


class ProviderConfig(_Section):
    name: str
    kind: Literal["openai", "anthropic", "azure", "local", "scripted"]
    base_url: str = ""
    api_key: Secret = Secret("")
    api_version: str = ""
    """Azure only."""
    headers: dict[str, str] = {}
    max_connections: int = 512
    connect_timeout_s: float = 5.0
    verify_tls: bool = True
    options: dict[str, object] = {}
    """Of the `local` and `scripted` kinds."""


class ModelConfig(_Section):
    """A deployment. Entries of the same name are deployments of one model."""

    name: str
    provider: str
    upstream_name: str = ""
    """Empty: the same as `name`."""
    input_usd_per_mtok: float = 0.0
    output_usd_per_mtok: float = 0.0
    cache_read_usd_per_mtok: float | None = None
    """None: as input."""
    cache_write_usd_per_mtok: float | None = None
    reasoning_usd_per_mtok: float | None = None
    """None: as output."""
    audio_input_usd_per_mtok: float | None = None
    audio_output_usd_per_mtok: float | None = None
    context_tokens: int = 0
    max_output_tokens: int = 4096
    """What a request without its own limit is assumed to need, for the hold."""
    tools: bool = True
    images: bool = True
    json: bool = True
    logprobs: bool = False
    """True: the upstream gives log-probabilities, which cascades read as confidence."""
    weight: float = 1.0
    """Share of this deployment among those of its model."""


class RouteConfig(_Section):
    name: str
    models: list[str]
    router: str = "default"
    rules: list[dict[str, object]] = []
    weights: dict[str, float] = {}
    cost_weight: float | None = None
    min_quality: float | None = None
    budget_usd_per_day: float | None = None
    max_latency_s: float | None = None
    max_cost_usd: float | None = None
    cascade: str = "none"
    accept_at: float | None = None
    """Least confidence that keeps a cheap answer; None: what the route's artefact learnt, else 0.5."""
    cache: Literal["none", "exact", "semantic"] = "none"
    cache_ttl_s: float = 3600.0
    cache_eps: float = 0.03
    """Bound on the false-hit rate of the semantic cache."""
    fallback: list[str] = []
    """Routes or models tried when every model of this route has failed; cycles are refused."""
    default_model: str = ""
    """What answers when the router can't decide; empty: the last of `models`."""
    max_attempts: int = 4
    retries: int = 1
    explore: float = 0.0
    """Floor of the exploration probability, 0..1."""
    hedge_after_s: float | None = None
    """Start a second attempt when the first byte is this late; None: never."""
    hedge_max_share: float = 0.05
    store_text: bool = False
    """True: prompts and answers are kept in the decision record."""
    rpm: int | None = None
    tpm: int | None = None


class KeyConfig(_Section):
    """A virtual key set by the file; keys made by `headgate keys` live in the database, hashed."""

    name: str
    key: Secret
    tenant: str = "default"
    models: list[str] = []
    """Routes and models it may use; empty: all."""
    rpm: int | None = None
    tpm: int | None = None
    budget_usd: float | None = None
    budget_period: Literal["day", "week", "month", "total"] = "month"
    knobs: bool = True
    """May set x-headgate-* knobs."""
    explore: bool = True


class Auth(_Section):
    master_key: Secret = Secret("")
    keys: list[KeyConfig] = []


class Telemetry(_Section):
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "text"
    otlp_endpoint: str = ""
    """Empty: no spans. Otherwise OTLP over HTTP; needs the extra `otel`."""


class Config(_Section):
    server: Server = Server()
    storage: Storage = Storage()
    providers: list[ProviderConfig] = []
    models: list[ModelConfig] = []
    routes: list[RouteConfig] = []
    auth: Auth = Auth()
    telemetry: Telemetry = Telemetry()
