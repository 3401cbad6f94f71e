"""The admin API's answers and requests, typed for OpenAPI. Money is in dollars, times are Unix seconds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.journal.record import KeyRecord
from gateway.journal.tables import LATENCY_BOUNDS_S, LATENCY_COLUMNS
from gateway.journal.write import Row

Name = Annotated[str, Field(min_length=1, max_length=200)]


class DecisionRow(BaseModel):
    """One line of the list."""

    id: str
    time_s: float
    request_id: str
    response_id: str
    tenant: str
    key_id: str
    route: str
    model: str
    answered_model: str
    router: str
    cost_usd: float
    status: int
    cache: str
    latency_s: float | None


class DecisionPage(BaseModel):
    """Newest first. `next` is the cursor of the page after; null: this is the last."""

    data: list[DecisionRow]
    next: str | None


class FeedbackRow(BaseModel):
    """`decision_id` is null while no decision of that name has been seen."""

    id: str
    time_s: float
    tenant: str
    decision_id: str | None
    response_id: str
    request_id: str
    score: float | None
    label: str
    comment: str
    source: str


class DecisionDetail(BaseModel):
    """Everything known of a decision, and what was said of its answer."""

    decision: dict[str, Any]
    feedback: list[FeedbackRow]


class SpendRow(BaseModel):
    """Since the hour asked for."""

    tenant: str
    key_id: str
    route: str
    requests: int
    cost_usd: float


class StatsRow(BaseModel):
    """One step of one route and model. `latency_counts` has one number per bound of `Stats` and one above."""

    time_s: int
    route: str
    model: str
    requests: int
    errors: int
    cache_hits: int
    escalations: int
    cost_usd: float
    saved_usd: float
    input_tokens: int
    output_tokens: int
    latency_counts: list[int]


class Stats(BaseModel):
    """Oldest first."""

    latency_bounds_s: list[float] = list(LATENCY_BOUNDS_S)
    data: list[StatsRow]


class KeyChange(BaseModel):
    """What may be changed of a key; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    models: list[Name] | None = None
    rpm: Annotated[int, Field(ge=1)] | None = None
    tpm: Annotated[int, Field(ge=1)] | None = None
    budget_usd: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    budget_period: Literal["day", "week", "month", "total"] = "month"
    knobs: bool = True
    explore: bool = True
    expires_s: float | None = None


class NewKey(KeyChange):
    """A key to make."""

    name: Name
    tenant: Name = "default"


class Key(BaseModel):
    """A key without its secret."""

    id: str
    name: str
    prefix: str
    tenant: str
    models: list[str]
    rpm: int | None
    tpm: int | None
    budget_usd: float | None
    budget_period: str
    knobs: bool
    explore: bool
    created_s: float
    expires_s: float | None
    revoked_s: float | None


class MadeKey(BaseModel):
    """`key` is shown this once and kept nowhere."""

    key: str
    record: Key


class Breaker(BaseModel):
    """A model at a provider, as the worst of the workers sees it."""

    model: str
    provider: str
    state: Literal["closed", "half_open", "open"]
    in_flight: int


class ModelRow(BaseModel):
    """A configured deployment."""

    name: str
    provider: str
    upstream_name: str
    input_usd_per_mtok: float
    output_usd_per_mtok: float
    breaker: Breaker | None


class RouterVersionRow(BaseModel):
    """A trained router and where it stands."""

    name: str
    version: str
    time_s: float
    state: str
    artifact: str
    checksum: str
    metrics: dict[str, Any]


class AuditRow(BaseModel):
    """Who changed what."""

    id: str
    time_s: float
    actor: str
    action: str
    target: str
    detail: dict[str, Any]


class Health(BaseModel):
    """`fault` says why shipping waits; records are safe in the spools meanwhile."""

    status: Literal["ready", "degraded", "unready"]
    database: Literal["ok", "away"]
    waiting_bytes: int
    quarantined: int
    fault: str


def in_dollars(row: Row) -> Row:
    """Nano-dollars to dollars, by their names."""
    return {
        name.replace("_nanousd", "_usd"): value / 1e9 if name.endswith("_nanousd") else value
        for name, value in row.items()
    }


def stats_row(row: Row) -> StatsRow:
    """The histogram's columns as one list."""
    return StatsRow(**in_dollars(row), latency_counts=[row[name] for name in LATENCY_COLUMNS])


def key_view(record: KeyRecord) -> Key:
    """Without the hash."""
    return Key.model_validate({name: getattr(record, name) for name in Key.model_fields})
