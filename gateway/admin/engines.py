"""Statistics of inference servers, from their metrics pages: rates and loads of our own, and loads of other engines."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import httpx

from gateway.admin.services import AdminServices
from gateway.admin.shapes.models import EngineStats
from gateway.config.types import ProviderConfig
from gateway.providers.managed import managed
from gateway.upstream.checked import checked
from gateway.upstream.reach import names_inner
from local_models.backends import PROFILES, Load, Profile
from local_models.meter import read_joules

ASK_S = 0.5
LEAST_S = 2.0
"""Least time over which rates are computed; a request that comes sooner gets the rates of the one before."""
_LINE = re.compile(r'^(local_\w+)\{model="([^"]*)"\} (\S+)$', re.MULTILINE)
Reading = dict[str, float]


def engines(services: AdminServices) -> list[EngineStats]:
    """Statistics of every local provider that answers, and of every other whose engine is configured."""
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
    """Load of each of the provider's models; empty where the engine has no metrics page or doesn't answer in time."""
    page = _page(services, provider, engine.metrics_path) if engine.metrics_path else ""
    names = {
        one.name: one.upstream_name or one.name for one in services.current.models if one.provider == provider.name
    }
    return [_load(provider.name, name, engine.read_load(page, known)) for name, known in names.items()] if page else []


def _load(provider: str, model: str, load: Load) -> EngineStats:
    return EngineStats(
        provider=provider, model=model, running=_rounded(load.running), waiting=_rounded(load.waiting),
        kv_used_share=load.kv_use, prefix_hit_share=load.prefix_hit_rate,
    )  # fmt: skip


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)


def readings(services: AdminServices, provider: ProviderConfig) -> dict[str, Reading]:
    """Metrics of our own inference server by model; empty where it doesn't answer in time."""
    found: dict[str, Reading] = {}
    for name, model, value in _LINE.findall(_page(services, provider, "/metrics")):
        found.setdefault(model, {})[name] = float(value)
    return found


def _page(services: AdminServices, provider: ProviderConfig, path: str) -> str:
    """Body of a page of the server; empty where it doesn't answer in time, or not with status 200."""
    child = managed(provider, services.config.server)
    transport = httpx.HTTPTransport(uds=str(child.socket) if child is not None else None, verify=provider.verify_tls)
    base = "http://local" if child is not None else provider.base_url.rstrip("/").removesuffix("/v1")
    try:
        hooks = checked(inner=provider.private_network or names_inner(httpx.URL(base).host))
        with httpx.Client(transport=transport, timeout=ASK_S, event_hooks=hooks) as client:
            answer = client.get(base + path)
    except httpx.HTTPError:
        return ""
    return answer.text if answer.status_code == 200 else ""


def energy_note() -> str:
    """Why energy is not reported; empty where it is."""
    return "" if read_joules() is not None else "this machine's processor does not report how much energy it uses"


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


def _ratio(reading: Mapping[str, float], part: str, whole: str) -> float | None:
    """One metric over another; None where either is missing, the first is NaN, or the second is 0."""
    numerator, denominator = reading.get(part), reading.get(whole)
    if numerator is None or not denominator or numerator != numerator:
        return None
    return numerator / denominator


def _rates(services: AdminServices, key: str, now: Reading) -> Reading:
    """Changes per second since the reading before; empty at the first one."""
    at = time.monotonic()
    seen: tuple[float, Any] = services.results.get(key, (at, (now, {})))
    before, rates = seen[1]
    passed_s = at - seen[0]
    if key not in services.results or passed_s >= LEAST_S:
        if passed_s >= LEAST_S:
            rates = {name: (value - before[name]) / passed_s for name, value in now.items() if name in before}
        services.results[key] = (at, (now, rates))
    found: Reading = rates
    return found
