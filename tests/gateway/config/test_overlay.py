from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.load import parse
from gateway.config.overlay import FILE, Overlay, hide, overlaid, read_secrets
from gateway.config.types import Config

BASE: dict[str, Any] = {
    "providers": [{"name": "up", "kind": "openai", "base_url": "http://x/v1", "api_key": "${K}",
                   "headers": {"x-a": "${K}"}}],
    "models": [{"name": "small", "provider": "up"}, {"name": "large", "provider": "up", "input_usd_per_mtok": 3.0}],
    "routes": [{"name": "auto", "models": ["small", "large"], "cost_weight": 0.5, "fallback": ["small"]}],
    "auth": {"master_key": "${K}2", "tenants": [{"name": "acme", "budget_usd": 5.0}],
             "keys": [{"name": "k", "key": "${K}3"}]},
}  # fmt: skip


@pytest.fixture
def config() -> Config:
    found, problems = parse(BASE, {"K": "sk-${NOT} a variable"})
    assert found is not None, problems
    return found


def test_nothing_on_it_is_the_configuration_itself(config: Config) -> None:
    """An empty overlay, or one that repeats a value, gives the same configuration, secrets included."""
    assert overlaid(config, Overlay(), {}) == (config, [])
    same, problems = overlaid(config, Overlay(routes={"auto": {"cost_weight": 0.5}}), {})
    assert problems == [] and same == config


def test_each_kind_of_section_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are inspected once and not for each of ten thousand keys, because requests wait meanwhile."""
    keys = [{"name": f"k{number}", "key": f"${{K}}{number}"} for number in range(50)]
    config, problems = parse({**BASE, "auth": {"keys": keys}}, {"K": "sk"})
    assert config is not None, problems
    looked_at: list[type] = []

    def noted(kind: Any) -> Any:
        looked_at.append(kind if isinstance(kind, type) else type(kind))
        return fields(kind)

    fields = msgspec.structs.fields
    monkeypatch.setattr(msgspec.structs, "fields", noted)
    overlaid(config, Overlay(routes={"auto": {"cost_weight": 0.4}}), {})
    assert len(looked_at) == len(set(looked_at))


@settings(deadline=None)
@given(st.floats(0, 1), st.one_of(st.none(), st.floats(0.01, 1)), st.integers(1, 9))
def test_only_what_was_changed_changes(weight: float, floor: float | None, attempts: int) -> None:
    """Every other field of every table stays as in the file."""
    config, _ = parse(BASE, {"K": "sk"})
    assert config is not None
    change = {"cost_weight": weight, "min_quality": floor, "max_attempts": attempts}
    found, problems = overlaid(config, Overlay(routes={"auto": change}), {})
    assert found is not None, problems
    route = found.routes[0]
    assert (route.cost_weight, route.min_quality, route.max_attempts) == (weight, floor, attempts)
    assert (found.providers, found.models, found.auth) == (config.providers, config.models, config.auth)
    assert route.fallback == ["small"]


@pytest.mark.parametrize(
    ("overlay", "problem"),
    [
        (Overlay(routes={"auto": {"cost_weight": 2.0}}), "routes[0].cost_weight"),
        (Overlay(routes={"auto": {"nonsense": 1}}), "routes[0].nonsense: unknown key"),
        (Overlay(routes={"new": {"models": ["nobody"]}}), "no model named 'nobody'"),
        (Overlay(models={"small": {"provider": "nobody"}}), "no provider named 'nobody'"),
        (Overlay(members={"small": [], "large": []}), "names no model"),
        (Overlay(providers={"new": {"kind": "openai", "base_url": "http://x", "api_key": "${HGS_0000000000000000}"}}),
         "one of their secrets is not on this machine"),
    ],
)  # fmt: skip
def test_what_the_file_could_not_say_is_refused(config: Config, overlay: Overlay, problem: str) -> None:
    """An overlay is refused with the path that the fault would have in the file."""
    found, problems = overlaid(config, overlay, {})
    assert found is None and any(problem in one for one in problems), problems
    assert not any("sk-" in one for one in problems)


def test_a_secret_is_put_away_and_found_again(config: Config, tmp_path: Path) -> None:
    """Secrets are stored in a file of mode 0600, one beside the other; a variable's name is no secret."""
    named = hide(tmp_path, "sk-${very} secret")
    hide(tmp_path, "second")
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600 and len(read_secrets(tmp_path)) == 2
    overlay = Overlay(providers={"new": {"kind": "openai", "base_url": "http://x/v1", "api_key": named}})
    found, problems = overlaid(config, overlay, read_secrets(tmp_path))
    assert found is not None, problems
    assert found.providers[1].api_key == "sk-${very} secret"
    assert hide(tmp_path, "${HOME}") == "${HOME}" and hide(tmp_path, "") == "" and len(read_secrets(tmp_path)) == 2
