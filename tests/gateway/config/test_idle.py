"""Settings without effect are reported, each with its path; settings that something reads are not."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway.config.idle import idle
from gateway.config.load import embedded, parse
from tests.command import headgate
from tests.gateway.serve.test_serve import write_config

ROOT = Path(__file__).parents[3]
DEPLOYED = ("deploy/headgate.cluster.toml", "deploy/kubernetes/headgate.toml")


def warned(**sections: Any) -> list[str]:
    """Paths of the warnings for a configuration of three priced models with log-probabilities behind one route."""
    base: dict[str, Any] = {
        "providers": [{"name": "up", "kind": "scripted"}],
        "models": [{"name": name, "provider": "up", "input_usd_per_mtok": 1.0, "logprobs": True} for name in "abc"],
        "routes": [{"name": "auto", "models": ["a", "b", "c"], **sections.pop("route", {})}],
        **sections,
    }
    config, problems = parse(base, {})
    assert config is not None, problems
    return [line.partition(":")[0] for line in idle(config)]


IDLE: list[dict[str, Any]] = [
    {"strategies": ["none", "verify"]}, {"step_price": 0.5}, {"accept_at": 0.8}, {"speculate": True},
    {"cascade": "agreement", "accept_at": 0.8}, {"cascade": "verify", "speculate": True},
    {"reference": "a"}, {"certainty": 0.9}, {"measured_share": 0.5}, {"check": ["/bin/true"]}, {"check_timeout_s": 1.0},
    {"gather_most": 4}, {"gather_tokens": 9}, {"solved_most": 2}, {"solved_withheld": 0.2}, {"cache_ttl_s": 60.0},
    {"cache_judge": "a"},
    {"cache": "exact", "cache_eps": 0.01}, {"cache": "exact", "cache_rule": "rule.npz"}, {"hedge_max_share": 0.5},
    {"max_attempts": 1, "hedge_after_s": 1.0}, {"max_attempts": 1, "cascade": "confidence"}, {"fallback": ["a"]},
    {"router": "weighted", "explore": 0.1}, {"router": "cheapest", "min_quality": 0.9},
    {"cascade": "confidence", "check": ["checks/json.py"]}, {"cascade": "confidence", "check": ["/no/such/check"]},
    {"models": ["a"], "cascade": "confidence"}, {"models": ["a", "b"], "cascade": "agreement"},
]  # fmt: skip
READ: list[dict[str, Any]] = [
    {"cascade": "learned", "strategies": ["none", "verify"], "step_price": 0.5, "accept_at": 0.9, "explore": 0.1},
    {"cascade": "confidence", "accept_at": 0.8, "speculate": True, "check": ["/bin/true"], "check_timeout_s": 1.0},
    {"cascade": "certified", "min_quality": 0.9, "reference": "a", "certainty": 0.9, "cache_judge": "b"},
    {"gather_ms": 10.0, "gather_most": 4, "solved": "cases.jsonl", "solved_most": 2, "solved_withheld": 0.2,
     "explore": 0.1},
    {"cache": "semantic", "cache_eps": 0.01, "cache_judge": "a", "cache_rule": "rule.npz", "cache_ttl_s": 60.0},
    {"hedge_after_s": 1.0, "hedge_max_share": 0.5, "budget_usd_per_day": 1.0, "max_cost_usd": 0.1},
    {"router": "weighted", "learn_every_s": 60.0, "explore": 0.1, "cost_weight": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("route", IDLE, ids=str)
def test_an_idle_setting_of_a_route_is_reported(route: dict[str, Any]) -> None:
    """The last setting of each case is reported, and no other."""
    assert warned(route=route) == [f"routes[0].{list(route)[-1]}"]


@pytest.mark.parametrize("route", READ, ids=lambda one: ",".join(one))
def test_settings_that_are_read_are_not_reported(route: dict[str, Any]) -> None:
    """The same settings are not reported where something reads them."""
    assert warned(route=route) == []


@pytest.mark.parametrize(
    ("sections", "paths"),
    [
        ({"storage": {"redis_away": "share"}}, ["storage.redis_away"]),
        ({"storage": {"redis_url": "redis://127.0.0.1", "redis_vectors": True}}, ["storage.redis_vectors"]),
        ({"embedding": {"dims": 3}}, ["embedding.dims"]),
        ({"providers": [{"name": "up", "kind": "scripted", "api_version": "1", "batch_window_s": 9.0}]},
         ["providers[0].api_version", "providers[0].batch_window_s"]),
        ({"models": [{"name": name, "provider": "up"} for name in "abc"], "route": {"budget_usd_per_day": 1.0},
          "auth": {"keys": [{"name": "k", "key": "hg-k", "budget_usd": 1.0}]}},
         ["routes[0].budget_usd_per_day", "auth.keys[0].budget_usd"]),
        ({"models": [{"name": name, "provider": "up", "web_search_usd": 0.01} for name in "abc"],
          "auth": {"keys": [{"name": "k", "key": "hg-k", "budget_usd": 1.0}]}},
         [f"models[{n}].web_search_usd" for n in range(3)]),
        ({"models": [{"name": name, "provider": "up", "tool_usd": {"mcp": 0.01}} for name in "abc"],
          "auth": {"keys": [{"name": "k", "key": "hg-k", "budget_usd": 1.0}]}}, []),
        ({"auth": {"tenants": [{"name": "t", "budget_period": "day"}]}}, ["auth.tenants[0].budget_period"]),
        ({"models": [{"name": name, "provider": "up", "input_usd_per_mtok": 1.0, "weight": 2.0, "parallel": 3}
                     for name in "abc"]},
         [f"models[{n}].{name}" for n in range(3) for name in ("parallel", "weight")]),
        ({"models": [{"name": name, "provider": "up", "input_usd_per_mtok": 1.0} for name in "abc"],
          "route": {"cascade": "confidence"}}, ["routes[0].cascade"]),
    ],
)  # fmt: skip
def test_idle_settings_elsewhere_are_reported(sections: dict[str, Any], paths: list[str]) -> None:
    """Among them are budgets that nothing spends and a cascade without the log-probabilities that it reads."""
    assert warned(**sections) == paths


@pytest.mark.parametrize("file", DEPLOYED)
def test_the_shipped_configurations_have_none(file: str) -> None:
    """Each setting of the shipped configurations has an effect."""
    text = (ROOT / file).read_text()
    config, problems = parse(tomllib.loads(text), dict.fromkeys(re.findall(r"\${(\w+)}", text), "x"))
    assert config is not None, problems
    assert idle(config) == []
    assert idle(embedded()) == []


def test_check_config_warns_and_succeeds(tmp_path: Path) -> None:
    """It prints the warnings as text or JSON, with the exit status of a valid configuration."""
    path, _, _ = write_config(tmp_path)
    path.write_text(path.read_text().replace('router = "cheapest"', 'router = "cheapest"\naccept_at = 0.9'))
    done = headgate("check-config", path)
    assert done.code == 0 and "warning: routes[0].accept_at: is read by cascades" in done.err
    told = json.loads(headgate("check-config", path, "--json").out)
    assert told["ok"] and not told["problems"] and len(told["warnings"]) == 1


def test_a_file_without_models_is_reported() -> None:
    """An empty file doesn't mean the embedded configuration, which needs no file."""
    config, problems = parse({}, {})
    assert config is not None and problems == []
    assert [line.partition(":")[0] for line in idle(config)] == ["models"]
