"""The configuration: all faults at once, each with its path; the example file has every key."""

from __future__ import annotations

import re
import tomllib
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cascade.plan import NAMES as CASCADES
from gateway.config.check import ROUTERS
from gateway.config.load import check, embedded, load, parse
from gateway.config.types import Config, Secret
from gateway.errors import ConfigError
from gateway.money.prices import TIER_PRICES
from routers.registry import NAMES

UNREADABLE = "has a host or a port that can't be read (in a password / ? # are written %2F %3F %23)"
SPACED = "begins or ends with a space, which no header keeps: nobody could send it"
EXAMPLE = Path(__file__).parents[3] / "deploy" / "headgate.example.toml"
ENV = {
    "ACME_KEY": "sk-acme-0001",
    "HEADGATE_MASTER_KEY": "hg-master-0001",
    "SEARCH_TEAM_KEY": "hg-search-0001",
}
BASE: dict[str, Any] = {
    "providers": [{"name": "acme", "kind": "openai", "base_url": "http://127.0.0.1:9/v1"}],
    "models": [{"name": "small", "provider": "acme"}, {"name": "large", "provider": "acme"}],
    "routes": [{"name": "auto", "models": ["small", "large"]}],
}


def problems(**changes: Any) -> list[str]:
    config, found = parse({**BASE, **changes}, ENV)
    assert (config is None) == bool(found)
    return found


def route(**changes: Any) -> list[str]:
    return problems(routes=[{**BASE["routes"][0], **changes}])


def test_the_base_of_these_tests_is_valid() -> None:
    """Otherwise the faults below might have other causes."""
    assert problems() == []


def test_the_example_file_loads() -> None:
    """With its variables set, the example is a working configuration."""
    config = load(str(EXAMPLE), ENV)
    assert config.providers[0].api_key == "sk-acme-0001"
    assert config.routes[0].fallback == ["steady"]


def test_the_example_states_the_default_factors_of_service_tiers() -> None:
    """The operator is told to check these against the provider's price list, so they must be the ones in use."""
    (tier_prices,) = (model.tier_prices for model in load(str(EXAMPLE), ENV).models if model.tier_prices)
    assert tier_prices == TIER_PRICES
    assert "check them against the" in EXAMPLE.read_text().partition("tier_prices = ")[2].partition("told_cost")[0]


def keys_of_tree(section: Any, path: str = "") -> set[str]:
    found = set()
    for name, kind in typing.get_type_hints(section).items():
        inner = next((a for a in typing.get_args(kind) if hasattr(a, "__struct_fields__")), kind)
        if hasattr(inner, "__struct_fields__"):
            found |= keys_of_tree(inner, f"{path}{name}.")
        else:
            found.add(path + name)
    return found


def keys_of_file(section: Any, tree: set[str], path: str = "") -> set[str]:
    found = set()
    for name, value in section.items():
        here = path + name
        tables = value if isinstance(value, list) else [value]
        if here in tree or not all(isinstance(table, dict) for table in tables):
            found.add(here)
        else:
            found |= {key for table in tables for key in keys_of_file(table, tree, here + ".")}
    return found


def test_the_example_holds_every_key_and_no_other() -> None:
    """The example has every key of the tree, and the tree every key of the example."""
    tree = keys_of_tree(Config)
    assert keys_of_file(tomllib.loads(EXAMPLE.read_text()), tree) == tree


def test_the_example_comments_every_key() -> None:
    """Each key has a comment in some line of the example."""
    told = {
        line.split("=")[0].strip() for line in EXAMPLE.read_text().splitlines() if "=" in line and "#" in line
    }
    assert {key.rpartition(".")[2] for key in keys_of_tree(Config)} <= told


def test_options_that_the_local_engine_refuses_are_faults() -> None:
    """They are reported with their path before the engine's process starts. Options of a server elsewhere aren't
    checked.
    """
    options = {"kv_tokens": 0, "device": "tpu", "kv_token": 5, "int8": True}
    _, found = parse({"providers": [{"name": "home", "kind": "local", "options": options}]}, {})
    paths = {problem.split(": ")[0] for problem in found}
    assert {f"providers[0].options.{name}" for name in ("kv_tokens", "device", "kv_token")} <= paths
    assert not any("int8" in path for path in paths)


def test_all_problems_are_reported_at_once() -> None:
    """An operator can fix a file in one go."""
    config, found = parse(
        {
            "server": {"prot": 1, "port": 70_000, "workers": True},
            "providers": [{"kind": "opena"}],
            "models": [{"name": "m", "provider": "nobody", "input_usd_per_mtok": -1.0}],
            "routes": [{"name": "auto", "models": ["x"], "min_quality": 0, "cost_weight": float("nan")}],
            "auth": {"master_key": "${NOWHERE}"},
            "telemetry": 3,
        },
        {},
    )
    assert config is None
    assert found == [
        "server.prot: unknown key; did you mean 'port'?",
        "server.port: expected `int` <= 65535",
        "server.workers: expected `int`, got `bool`",
        "providers[0].name: missing",
        "providers[0].kind: invalid enum value 'opena'; known are openai, anthropic, azure, local, scripted",
        "models[0].input_usd_per_mtok: expected `float` >= 0.0",
        "routes[0].cost_weight: expected a finite number, got nan",
        "routes[0].min_quality: expected `float` > 0.0",
        "auth.master_key: environment variable NOWHERE is not set",
        "telemetry: expected a table",
        "models[0].provider: no provider named 'nobody'",
        "routes[0].models[0]: no model named 'x'",
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"models": []}, "routes[0].models: names no model"),
        ({"models": ["small", "smal"]}, "routes[0].models[1]: no model named 'smal'; did you mean 'small'?"),
        ({"models": ["small", "small"]}, "routes[0].models[1]: 'small' is listed twice"),
        ({"models": "small"}, "routes[0].models: expected `array`, got `str`"),
        ({"models": ["small", 3]}, "routes[0].models[1]: expected `str`, got `int`"),
        ({"router": "knnn"}, "routes[0].router: no router named 'knnn'; did you mean 'knn'?"),
        (
            {"cascade": "confident"},
            "routes[0].cascade: no cascade named 'confident'; did you mean 'confidence'?",
        ),
        ({"cost_weight": 1.01}, "routes[0].cost_weight: expected `float` <= 1.0"),
        ({"cost_weight": -0.01}, "routes[0].cost_weight: expected `float` >= 0.0"),
        ({"min_quality": 1.5}, "routes[0].min_quality: expected `float` <= 1.0"),
        ({"accept_at": 0}, "routes[0].accept_at: expected `float` > 0.0"),
        ({"budget_usd_per_day": 1e300}, "routes[0].budget_usd_per_day: expected `float` <= 1000000000.0"),
        ({"rpm": 10**400}, "routes[0].rpm: expected `int` <= 1000000000000"),
        ({"cache_eps": 0}, "routes[0].cache_eps: expected `float` > 0.0"),
        ({"cache_eps": 1}, "routes[0].cache_eps: expected `float` < 1.0"),
        ({"router": "trained.bin"}, "routes[0].router: no router named 'trained.bin'"),
        ({"explore": 2}, "routes[0].explore: expected `float` <= 1.0"),
        ({"max_attempts": 0}, "routes[0].max_attempts: expected `int` >= 1"),
        ({"cache": "yes"}, "routes[0].cache: invalid enum value 'yes'; known are none, exact, semantic"),
        ({"default_model": "other"}, "routes[0].default_model: 'other' is not among the route's models"),
        ({"fallback": ["other"]}, "routes[0].fallback[0]: no route or model named 'other'"),
        ({"fallback": ["auto"]}, "routes[0].fallback: is a cycle: auto -> auto"),
        ({"weights": {"small": 1}}, "routes[0].weights: is read by router 'weighted' only, not by 'default'"),
        (
            {"router": "weighted", "weights": {"smal": 1, "large": 1}},
            "routes[0].weights.smal: is not a model of the route; did you mean 'small'?",
        ),
        ({"router": "weighted", "weights": {"small": -1}}, "routes[0].weights.small: expected `float` >= 0.0"),
        (
            {"router": "weighted", "weights": {"small": float("nan")}},
            "routes[0].weights.small: expected a finite number, got nan",
        ),
        ({"router": "weighted", "weights": {"small": 0}}, "routes[0].weights: are all zero"),
        (
            {"router": "rules", "rules": [{"model": "small", "iff": 1}]},
            "routes[0].rules[0].iff: unknown key; known are images, json, keywords, match, max_input_tokens, "
            "min_input_tokens, min_turns, model, tools, weights",
        ),
        (
            {"router": "rules", "rules": [{"model": "x"}]},
            "routes[0].rules[0]: no model of the route named 'x'",
        ),
        (
            {"router": "rules", "rules": [{"model": "small", "keywords": ["code", ""]}]},
            "routes[0].rules[0].keywords[1]: '' is not a word",
        ),
        ({"name": "${HOME}"}, "routes[0].name: ${...} is read in secrets only"),
        ({"name": ""}, "routes[0].name: is empty"),
        ({"name": " "}, "routes[0].name: is empty"),
        ({"name": "a\nb"}, "routes[0].name: holds a line break or another control character"),
        ({"name": "small"}, "routes[0].name: 'small' is also the name of a model"),
        ({"budget_usd_per_day": -3}, "routes[0].budget_usd_per_day: expected `float` >= 0.0"),
        ({"max_cost_usd": float("inf")}, "routes[0].max_cost_usd: expected a finite number, got inf"),
    ],
)
def test_a_routes_faults(changes: dict[str, Any], problem: str) -> None:
    """Each fault is reported with its path, and nothing else is."""
    assert route(**changes) == [problem]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"nonsense": 1}, "nonsense: unknown key"),
        ({"route": []}, "route: unknown key; did you mean 'routes'?"),
        ({"routes": {}}, "routes: expected a list of tables, written [[routes]]"),
        ({"storage": {"url": "postgresql://u@h:port/x"}}, f"storage.url: {UNREADABLE}"),
        ({"storage": {"redis_url": "redis://:pass/word@h:6379/0"}}, f"storage.redis_url: {UNREADABLE}"),
        ({"storage": {"redis_url": "redis://[::1/0"}}, f"storage.redis_url: {UNREADABLE}"),
        (
            {"storage": {"redis_url": "redis://h:6379/cache"}},
            "storage.redis_url: the database after the host must be a number, as in redis://HOST:6379/1",
        ),
        ({"telemetry": {"otlp_endpoint": "http://h:99999"}}, f"telemetry.otlp_endpoint: {UNREADABLE}"),
        (
            {"server": {"host": "0.0.0.0"}},
            "auth.master_key: is empty, so server.host must be loopback, not '0.0.0.0'",
        ),
        ({"server": {"port": 8081}}, "server.admin_port: is the port of the data plane, 8081"),
        ({"server": {"port": -1}}, "server.port: expected `int` >= 0"),
        ({"server": {"host": ""}}, "server.host: is empty; every address of this machine is 0.0.0.0 or ::"),
        ({"auth": {"master_key": "secret "}}, f"auth.master_key: {SPACED}"),
        ({"auth": {"keys": [{"name": "k", "key": " hg-1"}]}}, f"auth.keys[0].key: {SPACED}"),
        ({"auth": {"keys": [{"name": "k", "key": "hg-1", "tenant": ""}]}}, "auth.keys[0].tenant: is empty"),
        ({"server": {"host": 5}}, "server.host: expected `str`, got `int`"),
        (
            {"storage": {"url": "mysql://x"}},
            "storage.url: must start with one of sqlite:, postgresql:, postgresql+",
        ),
        (
            {"server": {"workers": 2}, "auth": {"tenants": [{"name": "t", "budget_usd": 1}]}},
            "server.workers: more than one share their budgets and limits through storage.redis_url, which is empty",
        ),
        ({"auth": {"keys": [{"name": "k", "key": ""}]}}, "auth.keys[0].key: is empty"),
        (
            {"server": {"cors_origins": ["*"]}},
            "server.cors_origins[0]: any web page could send requests, so auth.master_key must not be empty",
        ),
        (
            {"server": {"cors_origins": ["https://chat.example.org", "chat.example.org/"]}},
            "server.cors_origins[1]: 'chat.example.org/' is no origin, such as https://chat.example.org",
        ),
        (
            {"models": [*BASE["models"], {"name": "m", "provider": "acme", "leave_out": ["user", "messages"]}]},
            "models[2].leave_out[1]: 'messages' can't be left out: a request is nothing without it",
        ),
        (
            {"models": [*BASE["models"], {"name": "m", "provider": "acme", "leave_out": ["max_tokens"]}]},
            "models[2].leave_out[0]: 'max_tokens' limits what an answer costs; `rename` can give it another name",
        ),
        (
            {"models": [*BASE["models"], {"name": "m", "provider": "acme", "rename": {"seed": "stream"}}]},
            "models[2].rename.seed: 'stream' can't be renamed: the gateway reads and writes it",
        ),
        (
            {"auth": {"keys": [{"name": "a", "key": "hg-1"}, {"name": "b", "key": "hg-1"}]}},
            "auth.keys[1].key: is used twice",
        ),
        (
            {"auth": {"keys": [{"name": "a", "key": "hg-1"}, {"name": "a", "key": "hg-2"}]}},
            "auth.keys[1].name: 'a' is used twice",
        ),
        (
            {"auth": {"keys": [{"name": "a", "key": "hg-1", "models": ["atuo"]}]}},
            "auth.keys[0].models[0]: no route or model named 'atuo'; did you mean 'auto'?",
        ),
        ({"auth": {"master_key": 5}}, "auth.master_key: expected `str`, got `int`"),
    ],
)
def test_faults_elsewhere(changes: dict[str, Any], problem: str) -> None:
    """Each fault is reported with its path, and nothing else is."""
    assert problems(**changes) == [problem]


@pytest.mark.parametrize(
    "storage",
    [
        {"url": "postgresql:///x?host=/run/postgresql"}, {"url": "postgresql+psycopg://u:p/@w@[::1]:5432/x"},
        {"redis_url": "redis://:p%2Fw@h"}, {"redis_url": "rediss://u:p@[::1]:6380/3?ssl_cert_reqs=none"},
        {"redis_url": "unix:///run/redis.sock?db=1"},
    ],
)  # fmt: skip
def test_valid_addresses_are_accepted(storage: dict[str, Any]) -> None:
    """Unix sockets, passwords as the clients parse them, and IPv4 and IPv6 addresses are accepted."""
    assert problems(storage=storage) == []


@pytest.mark.parametrize("kind", ["openai", "anthropic", "azure"])
def test_a_remote_provider_needs_its_address(kind: str) -> None:
    """There is no default address to send a key to."""
    found = problems(providers=[{"name": "acme", "kind": kind}])
    assert found == ["providers[0].base_url: must start with one of http://, https://"]


@pytest.mark.parametrize(
    ("url", "fault"),
    [("http:///v1", "names no host"), ("https://u:p@h/v1", "credentials belong in api_key"),
     ("http://h/v1?x=1", "no query and no fragment"), ("http://h/v1#x", "no query and no fragment"),
     ("http://h/vü", "visible ASCII")],
)  # fmt: skip
def test_an_unusable_address_is_refused(url: str, fault: str) -> None:
    """It is refused at start, and the message doesn't contain its password."""
    (found,) = problems(providers=[{**BASE["providers"][0], "base_url": url}])
    assert found.startswith("providers[0].base_url: ") and fault in found and "u:p" not in found
    (found,) = problems(embedding={"kind": "openai", "base_url": url, "model": "m", "dims": 3})
    assert found.startswith("embedding.base_url: ") and fault in found


@pytest.mark.parametrize("kind", ["local", "scripted"])
def test_a_local_provider_needs_no_address(kind: str) -> None:
    """Models that run in this gateway have no address."""
    assert problems(providers=[{"name": "acme", "kind": kind}]) == []


def test_headers_cannot_be_split() -> None:
    """A line break in a header's name or value is refused, because it could forge another header."""
    headers = {"x-a": "b\r\nx-evil: 1", "x b": "1", "x-c": "fine"}
    provider = {**BASE["providers"][0], "headers": headers, "api_key": "${TWO_LINES}"}
    _, found = parse({**BASE, "providers": [provider]}, {"TWO_LINES": "a\n"})
    assert found == [
        "providers[0].api_key: holds a line break or another control character",
        "providers[0].headers.x-a: holds a line break or another control character",
        "providers[0].headers.'x b': is not the name of a header",
    ]


def test_duplicates_are_refused_but_deployments_are_not() -> None:
    """Entries of one model at different providers are its deployments; two equal entries are a mistake."""
    two = [*BASE["providers"], {**BASE["providers"][0], "name": "other"}]
    spread = [*BASE["models"], {"name": "small", "provider": "other"}]
    assert problems(providers=two, models=spread) == []
    assert problems(models=[*BASE["models"], BASE["models"][0]]) == [
        "models[2].name: 'small' at 'acme' is listed twice"
    ]
    assert problems(providers=[*BASE["providers"], *BASE["providers"]]) == [
        "providers[1].name: 'acme' is used twice"
    ]


def test_a_cycle_of_fallbacks_is_reported_once() -> None:
    """A cycle over several routes is reported once, wherever it is entered."""
    names = ["a", "b", "c"]
    routes = [
        {"name": name, "models": ["small"], "fallback": ["large", names[(i + 1) % 3]]}
        for i, name in enumerate(names)
    ]
    assert problems(routes=routes) == ["routes[0].fallback: is a cycle: a -> b -> c -> a"]
    routes[2]["fallback"] = ["large"]
    assert problems(routes=routes) == []


def test_secrets_are_read_from_the_environment_and_never_shown() -> None:
    """Neither `repr` nor a problem shows a secret, whatever field it is in."""
    config = load(str(EXAMPLE), ENV)
    shown = repr(config)
    assert not any(secret in shown for secret in ENV.values())
    assert isinstance(config.auth.keys[0].key, Secret)
    _, found = parse(
        {**BASE, "storage": {"url": "hg-secret-url"}, "auth": {"keys": [{"key": "hg-k"}] * 2}}, ENV
    )
    assert found and not any("hg-" in line for line in found)


def test_part_of_a_secret_may_come_from_the_environment() -> None:
    """A URL may contain a variable in place of its password."""
    config, found = parse({**BASE, "storage": {"url": "postgresql://me:${ACME_KEY}@host/db"}}, ENV)
    assert found == [] and config is not None
    assert config.storage.url == "postgresql://me:sk-acme-0001@host/db"


def test_all_missing_variables_are_reported_at_once() -> None:
    """One secret may name several."""
    _, found = parse({**BASE, "storage": {"url": "postgresql://${DB_USER}:${DB_KEY}@host/${DB_USER}"}}, ENV)
    assert found == ["storage.url: environment variables DB_USER, DB_KEY are not set"]


def test_a_file_that_is_absent_or_not_toml_is_one_problem(tmp_path: Path) -> None:
    """The problem names the file and the reason."""
    assert check(str(tmp_path / "no.toml"), {})[1] == [f"{tmp_path}/no.toml: No such file or directory"]
    (tmp_path / "bad.toml").write_text("a = = 3")
    assert "not TOML" in check(str(tmp_path / "bad.toml"), {})[1][0]
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        load(str(tmp_path / "binary.toml"), {})


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Windows editors write one."""
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbf[server]\r\nport = 8123\r\n")
    assert load(str(tmp_path / "marked.toml"), {}).server.port == 8123


def test_without_a_file_two_models_of_this_machine_answer() -> None:
    """The embedded configuration passes the checks of a file."""
    config = load(None, {})
    assert config == embedded()
    assert [model.name for model in config.models] == ["tiny-small", "tiny-large"]
    assert config.models[0].input_usd_per_mtok < config.models[1].input_usd_per_mtok
    again, found = parse(msgspec.to_builtins(config, enc_hook=str), {})
    assert found == [] and again == config


def test_routers_are_named_as_the_registry_names_them() -> None:
    """Every router that the configuration accepts can be opened."""
    assert set(ROUTERS) == set(NAMES)


def test_the_example_names_every_router_and_cascade() -> None:
    """Its comments list all that can be chosen."""
    told = EXAMPLE.read_text()
    assert [name for name in (*NAMES, *CASCADES) if not re.search(rf"(?<![\w-]){name}(?![\w-])", told)] == []
