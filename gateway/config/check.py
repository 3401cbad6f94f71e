"""Checks of the configuration that the types of its settings can't express: relations between settings and sections.

Each fault is reported with its path; none contains the value of a secret.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gateway.config.shape import CONTROL, Problems, did_you_mean, unreadable
from gateway.config.types import LOOPBACK, Config, KeyConfig, ModelConfig, ProviderConfig, RouteConfig
from gateway.serve.tls import tls_problems
from gateway.upstream.endpoint import parts_of
from gateway.upstream.reach import names_inner, refusal
from local_models.options import faults
from routers.simple import read_rule

if TYPE_CHECKING:
    from gateway.journal.record import KeyRecord

ROUTERS = (
    "default", "rules", "weighted", "cheapest", "task-mean", "knn", "linear", "factor", "preference",
    "clusters", "domain", "contrastive", "similar-wins", "mlp", "general", "ensemble", "stacked", "decided",
    "bandit",
)  # fmt: skip
CASCADES = ("none", "confidence", "certified", "agreement", "self-consistency", "best-of", "verify", "refine",
            "skeleton", "stepwise")  # fmt: skip
LEARNED = "learned"
"""The cascade that learns which of the route's `strategies` to use for a query."""
STEPWISE_ATTEMPTS = 25
"""Attempts that a stepwise cascade may need for one answer."""
NEEDS_URL = frozenset({"openai", "anthropic", "azure"})

_THE_REQUEST = ("model", "messages", "prompt", "input", "stream", "n")
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_tool_calls")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@]+")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def check_config(config: Config, problems: Problems) -> None:
    """Add every fault of the configuration to `problems`."""
    _check_names(config, problems)
    _check_server(config, problems)
    _check_embedding(config, problems)
    for index, provider in enumerate(config.providers):
        _check_provider(provider, f"providers[{index}]", problems)
    providers = [provider.name for provider in config.providers]
    for index, model in enumerate(config.models):
        problems.check_known(f"models[{index}].provider", "provider", model.provider, providers)
        first = next(one for one in config.models if one.name == model.name)
        if model.balance != first.balance:
            problems.add(f"models[{index}].balance", f"is {first.balance!r} at another deployment of {model.name!r}")
        _check_fields(model, f"models[{index}]", problems)
    models = {model.name for model in config.models}
    reachable = models | {route.name for route in config.routes}
    for index, route in enumerate(config.routes):
        _check_route(route, f"routes[{index}]", models, reachable, problems)
    _check_cycles(config.routes, problems)
    _check_auth(config, problems)


def _check_fields(model: ModelConfig, path: str, problems: Problems) -> None:
    for index, name in enumerate(model.leave_out):
        if name in _THE_REQUEST:
            problems.add(f"{path}.leave_out[{index}]", f"{name!r} can't be left out: a request is nothing without it")
        elif name in _LIMITS:
            why = f"{name!r} limits what an answer costs; `rename` can give it another name"
            problems.add(f"{path}.leave_out[{index}]", why)
    for name, other in model.rename.items():
        for fixed in {name, other}.intersection(_THE_REQUEST):
            problems.add(f"{path}.rename.{name}", f"{fixed!r} can't be renamed: the gateway reads and writes it")


def _check_names(config: Config, problems: Problems) -> None:
    _check_unique("providers", [provider.name for provider in config.providers], problems)
    _check_unique("routes", [route.name for route in config.routes], problems)
    _check_unique("auth.keys", [key.name for key in config.auth.keys], problems)
    _check_unique("auth.tenants", [tenant.name for tenant in config.auth.tenants], problems)
    deployments: set[tuple[str, str, str]] = set()
    for index, model in enumerate(config.models):
        deployment = (model.name, model.provider, model.upstream_name)
        if why := unreadable(model.name):
            problems.add(f"models[{index}].name", why)
        elif deployment in deployments:
            problems.add(f"models[{index}].name", f"{model.name!r} at {model.provider!r} is listed twice")
        deployments.add(deployment)
    models = {model.name for model in config.models}
    for index, route in enumerate(config.routes):
        if route.name in models:
            problems.add(f"routes[{index}].name", f"{route.name!r} is also the name of a model")


def _check_unique(path: str, names: list[str], problems: Problems) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if why := unreadable(name):
            problems.add(f"{path}[{index}].name", why)
        elif name in seen:
            problems.add(f"{path}[{index}].name", f"{name!r} is used twice")
        seen.add(name)


def _check_embedding(config: Config, problems: Problems) -> None:
    embedding = config.embedding
    needs = {"static": (), "folder": ("path",), "openai": ("base_url", "model", "dims")}[embedding.kind]
    for name in needs:
        if not getattr(embedding, name):
            problems.add(f"embedding.{name}", f"missing; the kind {embedding.kind!r} needs it")
    if embedding.cache and embedding.kind == "static":
        problems.add("embedding.cache", "needs another kind: the shipped table is what the cache reads anyway")
    if embedding.base_url:
        _check_base_url("embedding.base_url", embedding.base_url, problems)


def _check_server(config: Config, problems: Problems) -> None:
    server, storage = config.server, config.storage
    if not server.host.strip():
        problems.add("server.host", "is empty; every address of this machine is 0.0.0.0 or ::")
    if server.port and server.port == server.admin_port:
        problems.add("server.admin_port", f"is the port of the data plane, {server.port}")
    if server.workers > 1 and (problem := unshared(config)):
        problems.add("server.workers", problem)
    for setting, problem in tls_problems(server):
        problems.add(setting, problem)
    _check_url("storage.url", storage.url, ("sqlite:", "postgresql:", "postgresql+"), problems)
    if redis_url := str(storage.redis_url):
        _check_url("storage.redis_url", redis_url, ("redis://", "rediss://", "unix://"), problems)
        has_database = redis_url.startswith("redis") and _is_readable(redis_url)
        if has_database and not re.fullmatch("/?[0-9]*", urlsplit(redis_url).path):
            problems.add("storage.redis_url", "the database after the host must be a number, as in redis://HOST:6379/1")
    for index, origin in enumerate(server.cors_origins):
        if origin == "*" and not config.auth.master_key:
            why = "any web page could send requests, so auth.master_key must not be empty"
            problems.add(f"server.cors_origins[{index}]", why)
        elif origin != "*" and not _ORIGIN.fullmatch(origin):
            problems.add(f"server.cors_origins[{index}]", f"{origin!r} is no origin, such as https://chat.example.org")
    if config.telemetry.otlp_endpoint:
        _check_url("telemetry.otlp_endpoint", config.telemetry.otlp_endpoint, _HTTP, problems)


def unshared(config: Config, made: Iterable[KeyRecord] = ()) -> str:
    """Why several workers can't serve this configuration with the keys `made` at run time; empty if they can."""
    if config.storage.redis_url:
        return ""
    limits: list[object] = []
    for route in config.routes:
        limits += [route.budget_usd_per_day, route.rpm, route.tpm]
    keys: tuple[KeyConfig | KeyRecord, ...] = (*config.auth.keys, *made)
    limits += [limit for key in keys for limit in (key.budget_usd, key.rpm, key.tpm)]
    limits += [tenant.budget_usd for tenant in config.auth.tenants]
    if all(limit is None for limit in limits):
        return ""
    return "more than one share their budgets and limits through storage.redis_url, which is empty"


_HTTP = ("http://", "https://")
_POSTGRES = re.compile(r"postgresql[\w+]*://(?:.*@)?(?:\[[^/?]+\]|[^/:?@]*)(?::[0-9]*)?(?:[/?].*)?")


def _check_url(path: str, url: str, schemes: tuple[str, ...], problems: Problems) -> None:
    if not url.startswith(schemes):
        problems.add(path, f"must start with one of {', '.join(schemes)}")
    elif CONTROL.search(url) or " " in url:
        problems.add(path, "holds a space or a control character")
    elif not _is_readable(url):
        problems.add(path, "has a host or a port that can't be read (in a password / ? # are written %2F %3F %23)")


def _check_base_url(path: str, url: str, problems: Problems) -> None:
    """Check a provider's URL with the parser that its connections use, and that requests may be sent to its address,
    even in a private network.
    """
    _check_url(path, url, _HTTP, problems)
    if path in problems:
        return
    try:
        parts_of(url)
    except ValueError as error:
        problems.add(path, str(error))
    host = urlsplit(url).hostname or ""
    if names_inner(host) and (why := refusal(host, inner=True)) and "not an address" not in why:
        problems.add(path, why)


def _is_readable(url: str) -> bool:
    """True if the client can parse the URL. A PostgreSQL password may contain characters that urlsplit refuses."""
    if url.startswith("postgresql"):
        return _POSTGRES.fullmatch(url) is not None
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def _check_provider(provider: ProviderConfig, path: str, problems: Problems) -> None:
    if provider.base_url or (provider.kind in NEEDS_URL and f"{path}.kind" not in problems):
        _check_base_url(f"{path}.base_url", provider.base_url, problems)
    if provider.engine and provider.kind != "openai":
        problems.add(f"{path}.engine", f"is read by the kind 'openai' only, not by {provider.kind!r}")
    if provider.kind == "local" and not provider.base_url:
        for name, fault in faults(provider.options):
            problems.add(f"{path}.options.{name}", fault)
    for name in provider.headers:
        if not _HEADER_NAME.fullmatch(name):
            problems.add(f"{path}.headers.{name!r}", "is not the name of a header")


def _check_route(
    route: RouteConfig, path: str, models: Collection[str], reachable: Collection[str], problems: Problems
) -> None:
    if not route.models:
        problems.add(f"{path}.models", "names no model")
    for index, name in enumerate(route.models):
        problems.check_known(f"{path}.models[{index}]", "model", name, models)
        if name in route.models[:index]:
            problems.add(f"{path}.models[{index}]", f"{name!r} is listed twice")
    if route.cache_judge:
        problems.check_known(f"{path}.cache_judge", "model", route.cache_judge, models)
    if route.judge:
        problems.check_known(f"{path}.judge", "model", route.judge, models)
        if "verify" not in (route.cascade, *route.strategies):
            problems.add(f"{path}.judge", "is used by cascade 'verify' only")
    if route.default_model and route.default_model not in route.models:
        problems.add(f"{path}.default_model", f"{route.default_model!r} is not among the route's models")
    for name in route.weights:
        if name not in route.models:
            problems.add(f"{path}.weights.{name}", f"is not a model of the route{did_you_mean(name, route.models)}")
    if route.weights and not any(route.weights.values()):
        problems.add(f"{path}.weights", "are all zero")
    for index, name in enumerate(route.fallback):
        problems.check_known(f"{path}.fallback[{index}]", "route or model", name, reachable)
    if not is_path(route.cascade):
        problems.check_known(f"{path}.cascade", "cascade", route.cascade, (*CASCADES, LEARNED))
        if route.most_wrong:
            problems.add(f"{path}.most_wrong", "works with a trained cascade only: set `cascade` to the path of one")
    _check_strategies(route, path, problems)
    if "stepwise" in (route.cascade, *route.strategies) and route.max_attempts < STEPWISE_ATTEMPTS:
        problems.add(f"{path}.max_attempts", f"a stepwise cascade may need {STEPWISE_ATTEMPTS} calls for one answer")
    _check_promise(route, path, problems)
    if route.solved and route.cascade not in ("none", "confidence", "certified"):
        why = f"is shown by cascades none, confidence and certified only, not {route.cascade!r}"
        problems.add(f"{path}.solved", why)
    if route.gather_ms and (route.retries < 1 or route.max_attempts < 2):
        why = "needs retries = 1 and max_attempts = 2 at least: a reply that can't be split is requested again"
        problems.add(f"{path}.gather_ms", why)
    if not is_path(route.router):
        problems.check_known(f"{path}.router", "router", route.router, ROUTERS)
    _check_rules(route, path, problems)
    for setting, router in (("rules", "rules"), ("weights", "weighted")):
        if getattr(route, setting) and route.router != router:
            problems.add(f"{path}.{setting}", f"is read by router {router!r} only, not by {route.router!r}")


def _check_strategies(route: RouteConfig, path: str, problems: Problems) -> None:
    if route.cascade == LEARNED and len(set(route.strategies)) < 2:
        problems.add(f"{path}.strategies", "a learned cascade needs two or more to choose among")
    for index, name in enumerate(route.strategies):
        problems.check_known(f"{path}.strategies[{index}]", "strategy", name, [c for c in CASCADES if c != "certified"])
        if name in route.strategies[:index]:
            problems.add(f"{path}.strategies[{index}]", f"{name!r} is listed twice")


def _check_promise(route: RouteConfig, path: str, problems: Problems) -> None:
    if route.reference and route.reference not in route.models:
        problems.add(f"{path}.reference", f"{route.reference!r} is not among the route's models")
    if route.cascade != "certified":
        return
    if route.min_quality is None:
        problems.add(f"{path}.min_quality", "is what a certified cascade promises, and is not set")
    if len(route.models) < 2:
        problems.add(f"{path}.models", "a certified cascade needs a model beside its reference")


def _check_rules(route: RouteConfig, path: str, problems: Problems) -> None:
    for index, stated in enumerate(route.rules):
        try:
            rule = read_rule(index, stated)
        except ValueError as error:
            at, _, message = str(error).partition(": ")
            problems.add(f"{path}.{at}", message)
            continue
        for name in rule.weights:
            problems.check_known(f"{path}.rules[{index}]", "model of the route", name, route.models)


def is_path(name: str) -> bool:
    """True for an artefact's path, False for the bare name of a router or cascade."""
    return "/" in name or name.endswith(".safetensors")


def _check_cycles(routes: list[RouteConfig], problems: Problems) -> None:
    edges = {route.name: route.fallback for route in routes}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            cycle = (*trail[trail.index(name) :], name)
            index = next(i for i, route in enumerate(routes) if route.name == cycle[0])
            problems.add(f"routes[{index}].fallback", f"is a cycle: {' -> '.join(cycle)}")
        elif name not in done:
            for following in edges.get(name, ()):
                visit(following, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


_SPACED = "begins or ends with a space, which no header keeps: nobody could send it"


def _check_auth(config: Config, problems: Problems) -> None:
    for setting in ("host", "admin_host"):
        host = getattr(config.server, setting)
        if not config.auth.master_key and host and host not in LOOPBACK:
            problems.add("auth.master_key", f"is empty, so server.{setting} must be loopback, not {host!r}")
    secrets: set[str] = {config.auth.master_key}
    if config.auth.master_key.strip() != config.auth.master_key:
        problems.add("auth.master_key", _SPACED)
    known = {model.name for model in config.models} | {route.name for route in config.routes}
    for index, key in enumerate(config.auth.keys):
        path = f"auth.keys[{index}]"
        if not key.key:
            problems.add(f"{path}.key", "is empty")
        elif key.key in secrets:
            problems.add(f"{path}.key", "is used twice")
        elif key.key.strip() != key.key:
            problems.add(f"{path}.key", _SPACED)
        if why := unreadable(key.tenant):
            problems.add(f"{path}.tenant", why)
        secrets.add(key.key)
        for at, name in enumerate(key.models):
            problems.check_known(f"{path}.models[{at}]", "route or model", name, known)
