"""Types that several pages share: intervals, refusals, roles, versions of a setting."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.config.types import MOST_USD

Name = Annotated[str, Field(min_length=1, max_length=200)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Quality = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Usd = Annotated[float, Field(ge=0, le=MOST_USD, allow_inf_nan=False)]
Role = Literal["viewer", "operator", "admin"]
Window = Literal["hour", "day", "week", "month"]


class Wanted(BaseModel):
    """Base of all request bodies: an unknown field is refused."""

    model_config = ConfigDict(extra="forbid")


class Interval(BaseModel):
    """A figure with its interval, of 95 % confidence unless stated otherwise."""

    value: float
    low: float
    high: float


class Refusal(BaseModel):
    """Why there is no figure, and roughly what evidence is missing."""

    message: str
    explored_calls: int | None = None
    """Further calls needed of models that are not the router's first choice."""
    calls: int | None = None
    """Further calls needed in all."""
    exploration: float | None = None
    """Share of `calls` that is assumed to explore; null: as at present."""
    cost_usd: float | None = None
    """Extra cost of those calls."""


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
    """None: the setting was removed, so that the configuration file's value is in force."""


class Applied(BaseModel):
    """A change that was stored and published."""

    setting: SettingVersion
    workers: int
    """Number of workers that run."""
    confirmed: int
    """Number of workers that reported within two seconds that they use the new setting."""


class AuditRow(BaseModel):
    """A change in the audit log. Where it can be undone, `undo` is the body to send to /admin/audit/undo."""

    id: str
    time_s: float
    actor: str
    action: str
    target: str
    detail: dict[str, Any]
    undo: dict[str, Any] | None = None
