"""What several pages share: intervals, refusals, who may do what, versions of a setting."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.config import MOST_USD

Name = Annotated[str, Field(min_length=1, max_length=200)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Quality = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Usd = Annotated[float, Field(ge=0, le=MOST_USD, allow_inf_nan=False)]
Role = Literal["viewer", "operator", "admin"]
Window = Literal["hour", "day", "week", "month"]


class Wanted(BaseModel):
    """A request's body: an unknown field is refused, never dropped."""

    model_config = ConfigDict(extra="forbid")


class Interval(BaseModel):
    """A figure and how sure it is: 95 % unless its owner says otherwise."""

    value: float
    low: float
    high: float


class Refusal(BaseModel):
    """Why there is no figure, and about what it would take."""

    message: str
    explored_calls: int | None = None
    """More calls of models that are not the router's first choice."""
    calls: int | None = None
    """More calls in all."""
    exploration: float | None = None
    """Share of those calls that is assumed to explore; null: as at present."""
    cost_usd: float | None = None


class Estimate(BaseModel):
    """A figure or the reason why there is none: exactly one of the two."""

    interval: Interval | None = None
    refusal: Refusal | None = None


class SettingVersion(BaseModel):
    """One version of a setting: who made it, when, and what it says."""

    name: str
    version: int
    time_s: float
    actor: str
    value: dict[str, Any] | None
    """None: removed; what the configuration says is in force."""


class Applied(BaseModel):
    """A change that is in force."""

    setting: SettingVersion
    workers: int
    """Workers that run."""
    confirmed: int
    """Of them, those that said within two seconds that they work by it."""


class AuditRow(BaseModel):
    """Who changed what. `undo` names the setting and the version to go back to, where it can be undone."""

    id: str
    time_s: float
    actor: str
    action: str
    target: str
    detail: dict[str, Any]
    undo: dict[str, Any] | None = None
