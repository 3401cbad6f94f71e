"""Alarms and dashboards use metrics that exist, and every alarm has its section in the runbook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from gateway.metrics import METRICS
from tests.deploy.test_image import DEPLOY

SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
EXPORTED = {spec.name + suffix: set(spec.labels) for spec in METRICS for suffix in SUFFIXES[spec.kind]}
_NAME = re.compile(r"\bheadgate_[a-z0-9_]+")
_MATCHERS = re.compile(r"\b(headgate_[a-z0-9_]+)\{([^}]*)\}")
_BY = re.compile(r"\bby \(([^)]*)\)")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "headgate.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [one["expr"] for panel in panels() for one in panel["targets"]]


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_every_metric_and_label_in_use_is_exported(expression: str) -> None:
    """An unknown metric would never raise an alarm, and an unknown label groups nothing."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = set(_NAME.findall(expression))
    assert used <= EXPORTED.keys(), used - EXPORTED.keys()
    assert set(re.findall(r"\bheadgate:[a-z0-9_:]+", expression)) <= recorded
    for name, matchers in _MATCHERS.findall(expression):
        labels = {one.partition("=")[0].strip("! ~") for one in matchers.split(",")}
        assert labels <= EXPORTED[name] | {"job", "instance"}, (name, labels)
    for group in _BY.findall(expression):
        labels = {one.strip() for one in group.split(",") if one.strip()}
        if used:
            known = set.union(*(EXPORTED[name] for name in used))
            assert labels <= known | {"le", "instance", "job"}, labels


def test_every_alarm_has_its_section() -> None:
    """Each names a heading of the runbook and has a severity and a summary; no section is of an unknown alarm."""
    runbook = (DEPLOY / "RUNBOOK.md").read_text()
    pages = set(re.findall(r"^### (Headgate\w+)$", runbook, re.MULTILINE))
    alarms = [rule for rule in rules() if "alert" in rule]
    assert {rule["alert"] for rule in alarms} == pages
    for rule in alarms:
        assert rule["annotations"]["runbook"] == f"RUNBOOK.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket", "info") and rule["annotations"]["summary"]


def test_the_runbook_names_existing_commands_and_settings() -> None:
    runbook = (DEPLOY / "RUNBOOK.md").read_text()
    example = (DEPLOY / "headgate.example.toml").read_text()
    for name in ("redis_timeout_s", "redis_away", "drain_timeout_s", "request_timeout_s", "max_output_tokens",
                 "max_attempts", "retries", "hedge_after_s", "max_latency_s", "explore"):  # fmt: skip
        assert name in runbook and re.search(rf"(?m)^{name} = ", example), name


def test_the_runbooks_paths_are_in_the_admin_api() -> None:
    """Each path exists with its method."""
    from gateway.admin import health
    from gateway.admin.app import API_MODULES

    runbook = (DEPLOY / "RUNBOOK.md").read_text()
    asked = re.findall(r"(?:(GET|PATCH|DELETE|POST) |curl )\$R(/[\w/]+)", runbook)
    assert len(asked) >= 8
    known = {
        (method, re.sub(r"{\w+}", "ID", route.path))
        for module in (health, *API_MODULES)
        for route in module.router.routes
        for method in getattr(route, "methods", None) or ()
    }  # fmt: skip
    assert {(method or "GET", path) for method, path in asked} <= known


def test_the_dashboard_is_provisioned() -> None:
    """Its panels have titles, units and separate places, and its data source is the provisioned one."""
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    uid = sources[0]["uid"]
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "headgate.json").read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        mine = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not mine & cells and max(x for x, _ in mine) < 24
        cells |= mine
    for panel in panels():
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"] and panel["targets"]
        assert panel["datasource"]["uid"] == uid
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/headgate.yaml").read_text())["providers"][0]
    compose = (DEPLOY / "compose.yaml").read_text()
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose


def test_promtool_agrees() -> None:
    """Prometheus's own tool finds the configuration and rules valid, and the rules fire when they should."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed; deploy/test-servers.sh installs it")
    folder = DEPLOY / "prometheus"
    for words in (["check", "config", "--syntax-only", "prometheus.yaml"], ["check", "rules", "rules.yaml"],
                  ["test", "rules", "rules.test.yaml"]):  # fmt: skip
        done = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
