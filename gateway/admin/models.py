"""The state of models and providers, and the HTTP paths that change them."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter

from gateway.admin.changes import database
from gateway.admin.engines import energy_note, engines
from gateway.admin.guard import Admin, Operator, Services, Viewer
from gateway.admin.parts import check_provider, put_model, put_provider, remove_model, remove_provider
from gateway.admin.services import AdminServices
from gateway.admin.shapes.common import Applied
from gateway.admin.shapes.models import (
    Checked,
    Deployment,
    Fleet,
    Hour,
    ModelCard,
    ModelWanted,
    ProviderCard,
    ProviderWanted,
    Source,
)
from gateway.admin.worker_sockets import ask_all
from gateway.config.types import Config, ModelConfig, ProviderConfig
from gateway.journal.rollup_tables import TTFT
from gateway.journal.sums import Sums, merged, quantile_s, sums
from gateway.providers.managed import managed

router = APIRouter(prefix="/admin", tags=["models"])
_WORST = {"closed": 0, "half_open": 1, "open": 2}

__all__ = ["check_provider", "fleet", "put_model", "put_provider", "remove_model", "remove_provider"]


def fleet(services: AdminServices) -> Fleet:
    """All models, providers and local engines: the last hour from the rollups, the present state from the workers."""
    config, until_s = services.current, (int(time.time()) // 60 + 1) * 60
    with database():
        rows = sums(services.store, 60, until_s - 3600, until_s, by=("model",))
        numbers, values = services.store.setting_numbers(""), services.store.latest_settings()
    here = {name for name, value in values.items() if value is not None}
    answers, silent = ask_all(services.run_dir, {"ask": "fleet"})
    health = _worst(answers.values())
    pools = connections(services)
    hours = {row["model"]: row for row in rows}
    names = dict.fromkeys(model.name for model in config.models)
    return Fleet(
        models=[_model(services, config, name, health, hours.get(name), numbers, here) for name in names],
        providers=[_provider(services, one, numbers, pools.get(one.name, {}), here) for one in config.providers],
        engines=engines(services), workers=list(answers), silent=silent, energy=energy_note(),
    )  # fmt: skip


def connections(services: AdminServices) -> dict[str, dict[str, int]]:
    """Number of connections to each provider by state, over all workers."""
    found: dict[str, dict[str, int]] = {}
    decoder = msgspec.json.Decoder(dict[str, list[tuple[tuple[str, ...], list[float]]]])
    for _, snapshot in services.snapshots():
        for (provider, state), (count,) in decoder.decode(snapshot).get("headgate_pool_connections", []):
            mine = found.setdefault(provider, {})
            mine[state] = mine.get(state, 0) + int(count)
    return found


def _worst(answers: Iterable[Sequence[Mapping[str, Any]]]) -> dict[tuple[str, str], dict[str, Any]]:
    """State of each deployment over all workers, by model and id: the worst breaker state, the largest latencies, and
    the sums of the counts.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for answer in answers:
        for one in answer:
            key = one["model"], one["id"]
            before = found.get(key)
            found[key] = dict(one) if before is None else _merged(before, one)
    return found


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    worse = max(one, other, key=lambda deployment: _WORST[deployment["state"]])
    merged = {name: one[name] + other[name] for name in ("in_flight", "requests", "failures")}
    for name in ("latency_s", "ttft_p95_s"):
        merged[name] = max((x for x in (one[name], other[name]) if x is not None), default=None)
    return {**worse, **merged, "retry_in_s": max(one["retry_in_s"], other["retry_in_s"])}


def _model(
    services: AdminServices, config: Config, name: str, health: Mapping[tuple[str, str], Mapping[str, Any]],
    hour: Sums | None, numbers: Mapping[str, int], here: Container[str],
) -> ModelCard:  # fmt: skip
    stated = [one for one in config.models if one.name == name]
    deployments = [_deployment(one, health) for one in stated]
    return ModelCard(
        name=name, source=_source(any(one.name == name for one in services.config.models), f"model:{name}" in here),
        health=_health(deployments), deployments=deployments,
        routes=[route.name for route in config.routes if name in route.models], hour=_hour(hour),
        config=msgspec.to_builtins(stated[0]), setting_version=numbers.get(f"model:{name}", 0),
    )  # fmt: skip


def _deployment(one: ModelConfig, health: Mapping[tuple[str, str], Mapping[str, Any]]) -> Deployment:
    id = f"{one.provider}/{one.upstream_name or one.name}"
    now = health.get((one.name, id), {})
    return Deployment(
        model=one.name, provider=one.provider, upstream_name=one.upstream_name or one.name, id=id,
        state=now.get("state", "unknown"), reason=now.get("reason", ""), retry_in_s=now.get("retry_in_s", 0.0),
        in_flight=now.get("in_flight", 0), requests=now.get("requests", 0), failures=now.get("failures", 0),
        latency_s=now.get("latency_s"), ttft_p95_s=now.get("ttft_p95_s"),
        input_usd_per_mtok=one.input_usd_per_mtok, output_usd_per_mtok=one.output_usd_per_mtok, weight=one.weight,
    )  # fmt: skip


def _health(deployments: Sequence[Deployment]) -> Any:
    states = {one.state for one in deployments}
    if states == {"closed"}:
        return "ok"
    if "unknown" in states:
        return "unknown"
    return "degraded" if "closed" in states or "half_open" in states else "down"


def _hour(row: Sums | None) -> Hour:
    totals = row or merged([])
    seconds = totals["answer_s"]
    return Hour(
        requests=totals["requests"], errors=totals["errors"], cost_usd=totals["cost_nanousd"] / 1e9,
        latency_p50_s=quantile_s(totals, 0.5), latency_p95_s=quantile_s(totals, 0.95),
        ttft_p50_s=quantile_s(totals, 0.5, TTFT),
        tokens_per_s=totals["answer_output_tokens"] / seconds if seconds else None,
    )  # fmt: skip


def _provider(
    services: AdminServices, one: ProviderConfig, numbers: Mapping[str, int], pool: Mapping[str, int],
    here: Container[str],
) -> ProviderCard:
    config, name = services.current, f"provider:{one.name}"
    return ProviderCard(
        name=one.name, kind=one.kind, base_url=one.base_url,
        source=_source(any(other.name == one.name for other in services.config.providers), name in here),
        api_key_set=bool(one.api_key), header_names=sorted(one.headers), api_version=one.api_version,
        engine=one.engine, max_connections=one.max_connections, connect_timeout_s=one.connect_timeout_s,
        verify_tls=one.verify_tls,
        managed=managed(one, config.server) is not None,
        models=sorted({model.name for model in config.models if model.provider == one.name}),
        connections=dict(pool), setting_version=numbers.get(name, 0),
    )  # fmt: skip


def _source(in_file: bool, here: bool) -> Source:
    if in_file:
        return "file, changed here" if here else "file"
    return "here"


@router.get("/fleet")
def get_fleet(services: Services, who: Viewer) -> Fleet:
    """Health, load, prices and latency of all models; state of local engines."""
    return fleet(services)


@router.put("/providers/{name:path}")
def put_one_provider(services: Services, who: Admin, name: str, wanted: ProviderWanted) -> Applied:
    """Add or change a provider."""
    return put_provider(services, who, name, wanted)


@router.delete("/providers/{name:path}")
def delete_provider(services: Services, who: Admin, name: str, version: int) -> Applied:
    """Undo all changes to a provider, so that the configuration file's entry, if any, is in force again."""
    return remove_provider(services, who, name, version)


@router.post("/providers/{name:path}/check")
def post_check(services: Services, who: Operator, name: str) -> Checked:
    """Check that a provider answers and accepts the key."""
    return check_provider(services, who, name)


@router.put("/models/{name:path}")
def put_one_model(services: Services, who: Admin, name: str, wanted: ModelWanted) -> Applied:
    """Add or change a model."""
    return put_model(services, who, name, wanted)


@router.delete("/models/{name:path}")
def delete_model(services: Services, who: Admin, name: str, version: int) -> Applied:
    """Undo all changes to a model, so that the configuration file's entry, if any, is in force again."""
    return remove_model(services, who, name, version)
