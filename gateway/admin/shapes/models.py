"""Models and providers: their state, and changes to them while the gateway runs.

The fields that can be changed are keys of the configuration. They are typed here again, because None has a meaning of
its own (keep the stored value) and OpenAPI is generated from these types; a test keeps the two consistent.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from gateway.admin.shapes.common import Name, Usd, Wanted

Source = Literal["file", "here", "file, changed here"]


class Deployment(BaseModel):
    """A deployment of a model: the worst state that any worker reports."""

    model: str
    provider: str
    upstream_name: str
    id: str
    """provider/upstream name."""
    state: Literal["closed", "half_open", "open", "unknown"]
    """State of the circuit breaker; unknown: no worker has reported it."""
    reason: str
    """The failure that opened it."""
    retry_in_s: float
    in_flight: int
    requests: int
    failures: int
    """Requests and failures are counted since the workers started."""
    latency_s: float | None
    ttft_p95_s: float | None
    input_usd_per_mtok: float
    output_usd_per_mtok: float
    weight: float


class Hour(BaseModel):
    """A model's last hour, from the journal."""

    requests: int
    errors: int
    cost_usd: float
    latency_p50_s: float | None
    latency_p95_s: float | None
    ttft_p50_s: float | None
    tokens_per_s: float | None
    """Output tokens per second of latency, over all its answers."""


class ModelCard(BaseModel):
    """A model with its deployments."""

    name: str
    source: Source
    health: Literal["ok", "degraded", "down", "unknown"]
    deployments: list[Deployment]
    routes: list[str]
    hour: Hour
    config: dict[str, Any]
    """All configuration keys of the first deployment."""
    setting_version: int


class EngineStats(BaseModel):
    """Statistics of an inference server. Rates are over the seconds since the last request. None: not reported."""

    provider: str
    model: str
    running: int | None
    waiting: int | None
    kv_used_share: float | None
    prefix_hit_share: float | None
    kv_cached_share: float | None = None
    tokens_per_s: float | None = None
    busy_share: float | None = None
    preemptions: int | None = None
    accepted_share: float | None = None
    """Accepted share of the draft tokens of speculative decoding."""
    accepted_over_best: float | None = None
    """Accepted draft tokens, relative to what the best acceptance rule would accept of them on average."""
    joules_per_token: float | None = None
    """Energy of all of the machine's processor packages per output token; None: the hardware doesn't report it."""


class ProviderCard(BaseModel):
    """A provider. Secrets are never shown, only whether one is set."""

    name: str
    kind: str
    base_url: str
    source: Source
    api_key_set: bool
    header_names: list[str]
    api_version: str
    engine: str
    max_connections: int
    connect_timeout_s: float
    verify_tls: bool
    managed: bool
    """Whether it is a child process of this gateway."""
    models: list[str]
    connections: dict[str, int]
    """Number of connections by state: idle or in_use."""
    setting_version: int


class Fleet(BaseModel):
    """All models, providers and inference servers."""

    models: list[ModelCard]
    providers: list[ProviderCard]
    engines: list[EngineStats]
    workers: list[str]
    silent: list[str]
    energy: str
    """Why energy is not reported; empty where it is."""


class ProviderWanted(Wanted):
    """A provider to add or change. A secret that is None stays as it is; an empty one is removed."""

    kind: Literal["openai", "anthropic", "azure", "local", "scripted"]
    base_url: str = ""
    api_key: str | None = None
    """The secret itself, or ${NAME} for an environment variable of the gateway."""
    headers: dict[str, str | None] = Field(default_factory=dict)
    api_version: str = ""
    engine: str = ""
    """For the kind openai: which inference server it is; empty: unknown."""
    max_connections: int = 512
    connect_timeout_s: float = 5.0
    verify_tls: bool = True
    version: int
    """`setting_version` as it was read; 0 for a new one."""


class ModelWanted(Wanted):
    """A model to add or change, with one deployment; further ones are added in the configuration file."""

    provider: Name
    upstream_name: str = ""
    input_usd_per_mtok: Usd = 0.0
    output_usd_per_mtok: Usd = 0.0
    cache_read_usd_per_mtok: Usd | None = None
    cache_write_usd_per_mtok: Usd | None = None
    cache_write_1h_usd_per_mtok: Usd | None = None
    reasoning_usd_per_mtok: Usd | None = None
    web_search_usd: Usd = 0.0
    unit_usd: Usd = 0.0
    context_tokens: int = 0
    max_output_tokens: int = 4096
    tools: bool = True
    images: bool = True
    json_schema: bool = True
    logprobs: bool = False
    weight: float = 1.0
    routes: list[Name] | None = None
    """The routes that use the model; None: they stay as they are."""
    version: int


class Checked(BaseModel):
    """Result of a connection test."""

    ok: bool
    detail: str
    latency_s: float | None = None
