"""Finds valid settings without effect, because of another setting in the same configuration.

A misspelled or impossible setting is refused (gateway/config/check.py). An idle one may be meant for later, so there is
only a warning: `headgate check-config` lists it, `headgate serve` logs it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from gateway.config.check import LEARNED, is_path
from gateway.config.types import Config, KeyConfig, ModelConfig, RouteConfig, TenantConfig

UNLEARNT = ("rules", "weighted", "cheapest")
"""Routers that estimate neither quality nor cost."""
LEAST_MODELS = {"confidence": 2, "verify": 2, "stepwise": 2, "agreement": 3}
"""Number of models that a strategy needs to have any effect."""
READS_THRESHOLD = frozenset({"confidence", "best-of", "verify", "refine", "stepwise"})
SPECULATES = frozenset({"confidence", "certified"})
READS_LOGPROBS = frozenset({"confidence", "certified"})

_Needs = tuple[tuple[str, ...], Callable[[Any], bool], str]
"""Names of settings, whether a section reads them, and what to say if it doesn't."""
_ROUTE: tuple[_Needs, ...] = (
    (("strategies", "step_price"), lambda r: r.cascade == LEARNED, "is read by cascade 'learned' only"),
    (("accept_at",), lambda r: not READS_THRESHOLD.isdisjoint(_ways(r)),
     f"is read by cascades {', '.join(sorted(READS_THRESHOLD))} only"),
    (("speculate",), lambda r: not SPECULATES.isdisjoint(_ways(r)),
     "is read by cascades certified and confidence only"),
    (("reference", "certainty", "measured_share"), lambda r: r.cascade == "certified",
     "is read by cascade 'certified' only"),
    (("check",), lambda r: _ways(r) != {"none"}, "judges answers that a cascade may send back, and there is none"),
    (("check_timeout_s",), lambda r: bool(r.check), "is read with `check` only"),
    (("gather_most", "gather_tokens"), lambda r: r.gather_ms > 0, "is read where gather_ms is above 0 only"),
    (("solved_most", "solved_withheld"), lambda r: bool(r.solved), "is read with `solved` only"),
    (("cache_ttl_s",), lambda r: r.cache != "none", "is read with a cache only"),
    (("cache_eps", "cache_rule"), lambda r: r.cache == "semantic", "is read by the semantic cache only"),
    (("cache_judge",), lambda r: r.cache == "semantic" or r.cascade == "certified",
     "is used by the semantic cache and cascade 'certified' only"),
    (("hedge_max_share",), lambda r: r.hedge_after_s is not None, "is read with hedge_after_s only"),
    (("hedge_after_s",), lambda r: r.max_attempts > 1 and r.hedge_max_share > 0,
     "never starts an attempt: max_attempts is 1 or hedge_max_share 0"),
    (("fallback",), lambda r: r.max_attempts > 1, "is never tried: max_attempts is 1"),
    (("cascade",), lambda r: r.max_attempts > 1, "never asks again: max_attempts is 1"),
    (("explore", "cost_weight", "min_quality", "wait_usd_per_s"),
     lambda r: r.router not in UNLEARNT or r.learn_every_s > 0 or _has_own_estimates(r.cascade),
     "is not read by a router that estimates nothing (rules, weighted, cheapest)"),
)  # fmt: skip
_PROVIDER: tuple[_Needs, ...] = (
    (("api_version",), lambda p: p.kind == "azure", "is read by the kind 'azure' only"),
    (("responses",), lambda p: p.kind in ("openai", "azure", "scripted"),
     "is read by the kinds 'openai', 'azure' and 'scripted' only"),
    (("batch_discount",), lambda p: p.kind == "openai", "is read by the kind 'openai' only"),
    (("batch_window_s",), lambda p: p.batch_discount > 0, "is read with batch_discount only"),
    (("options",), lambda p: p.kind in ("local", "scripted"), "is read by the kinds 'local' and 'scripted' only"),
    (("verify_tls",), lambda p: not p.base_url.startswith("http://"), "is read with an https address only"),
)
_MODEL: tuple[_Needs, ...] = (
    (("parallel", "memory_tokens"), lambda m: m.balance == "delay", "is read with balance = \"delay\" only"),
)
_BUDGET: tuple[_Needs, ...] = (
    (("budget_period",), lambda one: one.budget_usd is not None, "is read with budget_usd only"),
)
_STORAGE: tuple[_Needs, ...] = (
    (("redis_timeout_s", "redis_away", "redis_vectors"), lambda s: bool(s.redis_url), "is read with redis_url only"),
)
_EMBEDDING: tuple[_Needs, ...] = (
    (("path",), lambda e: e.kind == "folder", "is read by the kind 'folder' only"),
    (("base_url", "api_key", "model", "dims", "timeout_s"), lambda e: e.kind == "openai",
     "is read by the kind 'openai' only"),
)  # fmt: skip


def idle(config: Config) -> list[str]:
    """A line for each idle setting: its path, and why it has no effect."""
    warnings = [*_unread(config.storage, "storage", _STORAGE), *_unread(config.embedding, "embedding", _EMBEDDING)]
    if not config.models:
        warnings.append("models: there is none, so nothing is answered until one is added in the dashboard")
    for index, provider in enumerate(config.providers):
        warnings += _unread(provider, f"providers[{index}]", _PROVIDER)
    for index, model in enumerate(config.models):
        warnings += [*_unread(model, f"models[{index}]", _MODEL), *_unshared(config, model, f"models[{index}]")]
        if model.web_search_usd and not model.tool_usd:
            warnings.append(f"models[{index}].web_search_usd: prices searches of the web alone; what the provider "
                            "bills for its other tools (file_search, container ...) is not counted before tool_usd "
                            "states it")
    for index, route in enumerate(config.routes):
        warnings += [*_unread(route, f"routes[{index}]", _ROUTE), *_route(config, route, f"routes[{index}]")]
    if config.storage.redis_url and config.storage.redis_vectors and _none_is(config, "semantic"):
        warnings.append("storage.redis_vectors: is read by the semantic cache only, which no route has")
    owners: dict[str, KeyConfig | TenantConfig] = {f"auth.keys[{n}]": key for n, key in enumerate(config.auth.keys)}
    owners |= {f"auth.tenants[{n}]": tenant for n, tenant in enumerate(config.auth.tenants)}
    for path, owner in owners.items():
        warnings += _unread(owner, path, _BUDGET)
        if owner.budget_usd and _free(config.models):
            warnings.append(f"{path}.budget_usd: is never spent: no model has a price")
    return warnings


def _unread(section: msgspec.Struct, path: str, needs: tuple[_Needs, ...]) -> Iterator[str]:
    defaults = {field.name: _default(field) for field in msgspec.structs.fields(section)}
    for names, is_read, why in needs:
        for name in names:
            if getattr(section, name) != defaults[name] and not is_read(section):
                yield f"{path}.{name}: {why}"


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default


def _unshared(config: Config, model: ModelConfig, path: str) -> Iterator[str]:
    if sum(one.name == model.name for one in config.models) == 1:
        for name, default in (("weight", 1.0), ("balance", "weight")):
            if getattr(model, name) != default:
                yield f"{path}.{name}: shares requests among deployments, and {model.name!r} has one"


def _route(config: Config, route: RouteConfig, path: str) -> Iterator[str]:
    ways, models = _ways(route), [model for model in config.models if model.name in route.models]
    for way in sorted(ways):
        if len(route.models) < LEAST_MODELS.get(way, 1):
            yield f"{path}.cascade: {way!r} needs {LEAST_MODELS[way]} models, the route has {len(route.models)}"
        elif way in READS_LOGPROBS and not route.check and not any(model.logprobs for model in models):
            yield f"{path}.cascade: {way!r} reads log-probabilities, and no model of the route has logprobs = true"
    if route.check and not _is_program(route.check[0]):
        where = f"neither a program's whole path nor one in {os.defpath}"
        yield f"{path}.check: {route.check[0]!r} is {where}, so the check can't run"
    if route.fallback and set(route.fallback) <= set(route.models):
        yield f"{path}.fallback: holds the route's own models alone, which are tried anyway"
    for name in ("budget_usd_per_day", "max_cost_usd"):
        if getattr(route, name) and _free(models):
            yield f"{path}.{name}: is never reached: no model of the route has a price"


def _ways(route: RouteConfig) -> set[str]:
    """The strategies that the route may use."""
    return set(route.strategies) if route.cascade == LEARNED else {route.cascade}


def _is_program(command: str) -> bool:
    """True if a check can run the command: an absolute path, as checks run in an empty folder, or a program in
    `os.defpath`.
    """
    return ("/" not in command or os.path.isabs(command)) and shutil.which(command, path=os.defpath) is not None


def _has_own_estimates(cascade: str) -> bool:
    return cascade in (LEARNED, "certified") or is_path(cascade)


def _free(models: list[ModelConfig]) -> bool:
    return not any(
        one.input_usd_per_mtok or one.output_usd_per_mtok or one.web_search_usd or one.unit_usd
        or any(one.tool_usd.values())
        for one in models
    )


def _none_is(config: Config, cache: str) -> bool:
    return all(route.cache != cache for route in config.routes)
