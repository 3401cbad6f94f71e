"""Models and providers: how they are doing, what they cost, and changing them while the gateway runs.

What can be changed is part of the configuration's keys, typed here once more because None has a meaning of its own
(keep what is there) and because OpenAPI is made of it; a test keeps the two alike.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from gateway.admin.shapes.common import Name, Usd, Wanted

Source = Literal["file", "here", "file, changed here"]


class Deployment(BaseModel):
    """One way to reach a model, the worst of what the workers say of it."""

    model: str
    provider: str
    upstream_name: str
    id: str
    """provider/upstream name."""
    state: Literal["closed", "half_open", "open", "unknown"]
    """Of the breaker; unknown: no worker has said."""
    reason: str
    """The failure that opened it."""
    retry_in_s: float
    in_flight: int
    requests: int
    failures: int
    """Since the workers started."""
    latency_s: float | None
    ttft_p95_s: float | None
    input_usd_per_mtok: float
    output_usd_per_mtok: float
    weight: float


class Hour(BaseModel):
    """Over the last hour, from the journal."""

    requests: int
    errors: int
    cost_usd: float
    latency_p50_s: float | None
    latency_p95_s: float | None
    ttft_p50_s: float | None
    tokens_per_s: float | None
    """Output tokens per second of latency, the mean over its answers."""


class ModelCard(BaseModel):
    """A model with its deployments."""

    name: str
    source: Source
    health: Literal["ok", "degraded", "down", "unknown"]
    deployments: list[Deployment]
    routes: list[str]
    hour: Hour
    config: dict[str, Any]
    """Every key of the configuration, of the first deployment."""
    setting_version: int


class EngineStats(BaseModel):
    """An inference server's. Rates are over the time since the last look (some seconds); None: it does not say."""

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
    """Of the guesses of speculative decoding."""
    accepted_over_best: float | None = None
    """Guesses kept over what the best rule of acceptance keeps of the same guesses on average."""
    joules_per_token: float | None = None
    """Of the whole machine's packages while it worked; None: the hardware does not say."""


class ProviderCard(BaseModel):
    """A provider. Secrets are never shown: only whether one is set."""

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
    """A child process of this gateway."""
    models: list[str]
    connections: dict[str, int]
    """By state: idle, in_use."""
    setting_version: int


class Fleet(BaseModel):
    """The whole page."""

    models: list[ModelCard]
    providers: list[ProviderCard]
    engines: list[EngineStats]
    workers: list[str]
    silent: list[str]
    energy: str
    """Why joules are not told, where they aren't."""


class ProviderWanted(Wanted):
    """A provider to add or change. A secret left out (None) stays as it is; an empty one is removed."""

    kind: Literal["openai", "anthropic", "azure", "local", "scripted"]
    base_url: str = ""
    api_key: str | None = None
    """The secret itself, or ${NAME} of an environment variable of the gateway's."""
    headers: dict[str, str | None] = Field(default_factory=dict)
    api_version: str = ""
    engine: str = ""
    """The inference server that it is, of the kind openai; empty: not known."""
    max_connections: int = 512
    connect_timeout_s: float = 5.0
    verify_tls: bool = True
    version: int
    """`setting_version` as it was read; 0 for a new one."""


class ModelWanted(Wanted):
    """A model to add or change, with one deployment; further ones are the configuration file's business."""

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
    """Routes it shall be a model of; None: leave them as they are."""
    version: int


class Checked(BaseModel):
    """What a connection test found."""

    ok: bool
    detail: str
    latency_s: float | None = None
