"""What inference servers say of themselves: our own at length, as rates since the last look; others their load."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import httpx

from gateway.admin.services import AdminServices
from gateway.admin.shapes.models import EngineStats
from gateway.config import ProviderConfig
from gateway.providers.managed import managed
from gateway.upstream.checked import checked
from gateway.upstream.reach import names_inner
from local_models.backends import PROFILES, Load, Profile
from local_models.meter import read_joules

ASK_S = 0.5
LEAST_S = 2.0
"""Rates are told over at least so long; a look that comes sooner sees the rates of before."""
_LINE = re.compile(r'^(local_\w+)\{model="([^"]*)"\} (\S+)$', re.MULTILINE)
Reading = dict[str, float]


def engines(services: AdminServices) -> list[EngineStats]:
    """Of every local provider that answers, and of every other that is known to be an engine."""
    found = []
    for provider in services.current.providers:
        if provider.kind == "local":
            found += [
                _stats(services, provider.name, model, now) for model, now in readings(services, provider).items()
            ]
        elif provider.engine:
            found += loads(services, provider, PROFILES[provider.engine])
    return found


def loads(services: AdminServices, provider: ProviderConfig, engine: Profile) -> list[EngineStats]:
    """Of every model there; none where it has no page or does not answer in time."""
    page = _page(services, provider, engine.metrics_path) if engine.metrics_path else ""
    names = {
        one.name: one.upstream_name or one.name for one in services.current.models if one.provider == provider.name
    }
    return [_load(provider.name, name, engine.read_load(page, known)) for name, known in names.items()] if page else []


def _load(provider: str, model: str, told: Load) -> EngineStats:
    return EngineStats(
        provider=provider, model=model, running=_whole(told.running), waiting=_whole(told.waiting),
        kv_used_share=told.kv_use, prefix_hit_share=told.prefix_hit_rate,
    )  # fmt: skip


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def readings(services: AdminServices, provider: ProviderConfig) -> dict[str, Reading]:
    """By model; none where it does not answer in time."""
    found: dict[str, Reading] = {}
    for name, model, value in _LINE.findall(_page(services, provider, "/metrics")):
        found.setdefault(model, {})[name] = float(value)
    return found


def _page(services: AdminServices, provider: ProviderConfig, path: str) -> str:
    """Empty where it does not answer in time."""
    one = managed(provider, services.config.server)
    transport = httpx.HTTPTransport(uds=str(one.socket) if one is not None else None, verify=provider.verify_tls)
    base = "http://local" if one is not None else provider.base_url.rstrip("/").removesuffix("/v1")
    try:
        hooks = checked(inner=provider.private_network or names_inner(httpx.URL(base).host))
        with httpx.Client(transport=transport, timeout=ASK_S, event_hooks=hooks) as client:
            answer = client.get(base + path)
    except httpx.HTTPError:
        return ""
    return answer.text if answer.status_code == 200 else ""


def says_energy() -> str:
    """Why no joules are told; empty: they are."""
    return "" if read_joules() is not None else "this machine's processor does not say how much energy it uses"


def _stats(services: AdminServices, provider: str, model: str, now: Reading) -> EngineStats:
    rates = _rates(services, f"engine:{provider}:{model}", {**now, "joules": read_joules() or float("nan")})
    return EngineStats(
        provider=provider, model=model, running=int(now.get("local_requests_running", 0)),
        waiting=int(now.get("local_requests_waiting", 0)), kv_used_share=now.get("local_kv_usage_ratio", 0.0),
        kv_cached_share=now.get("local_kv_cached_ratio", 0.0),
        prefix_hit_share=_ratio(now, "local_prefix_hit_tokens_total", "local_prefix_asked_tokens_total"),
        tokens_per_s=rates.get("local_output_tokens_total"), busy_share=rates.get("local_busy_seconds_total"),
        preemptions=int(now.get("local_preemptions_total", 0)),
        accepted_share=_ratio(now, "local_accepted_tokens_total", "local_drafted_tokens_total"),
        accepted_over_best=_ratio(now, "local_accepted_tokens_total", "local_acceptable_tokens_total"),
        joules_per_token=_ratio(rates, "joules", "local_output_tokens_total"),
    )  # fmt: skip


def _ratio(told: Mapping[str, float], part: str, whole: str) -> float | None:
    top, bottom = told.get(part), told.get(whole)
    if top is None or not bottom or top != top:
        return None
    return top / bottom


def _rates(services: AdminServices, key: str, now: Reading) -> Reading:
    """Per second since the look before; nothing at the first one."""
    at = time.monotonic()
    seen: tuple[float, Any] = services.kept.get(key, (at, (now, {})))
    before, rates = seen[1]
    passed_s = at - seen[0]
    if key not in services.kept or passed_s >= LEAST_S:
        if passed_s >= LEAST_S:
            rates = {name: (value - before[name]) / passed_s for name, value in now.items() if name in before}
        services.kept[key] = (at, (now, rates))
    found: Reading = rates
    return found
