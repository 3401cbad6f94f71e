"""What a configuration needs beyond the base install, and which extra brings it. Loads none of it."""

from __future__ import annotations

from importlib.util import find_spec

from gateway.config import Config


def lacking(config: Config) -> list[str]:
    """What would fail as soon as it is needed, each with the command that installs it."""
    found = [
        lack(f"providers[{index}].kind: models of this machine need", "torch", "local")
        for index, one in enumerate(config.providers)
        if one.kind == "local" and not one.base_url
    ]
    if config.storage.url.startswith("postgres"):
        found.append(lack("storage.url: PostgreSQL needs", "psycopg", "postgres"))
    if config.telemetry.otlp_endpoint:
        found.append(lack("telemetry.otlp_endpoint: spans need", "opentelemetry.exporter.otlp.proto.http", "otel"))
    return [one for one in found if one]


def lack(what: str, module: str, extra: str) -> str:
    """Empty: it is installed."""
    try:
        there = find_spec(module) is not None
    except ModuleNotFoundError:  # nor is what it is a part of
        there = False
    return "" if there else f"{what} {module}: pip install 'headgate[{extra}]'"
