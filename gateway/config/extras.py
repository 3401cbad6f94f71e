"""Which packages beyond the base install a configuration needs, and which extra has them. Imports none."""

from __future__ import annotations

from importlib.util import find_spec

from gateway.config.types import Config


def missing_extras(config: Config) -> list[str]:
    """A line for each package that this configuration needs and lacks, with the command to install it."""
    lines = [
        missing_extra(f"providers[{index}].kind: models of this machine need", "torch", "local")
        for index, one in enumerate(config.providers)
        if one.kind == "local" and not one.base_url
    ]
    if config.storage.url.startswith("postgres"):
        lines.append(missing_extra("storage.url: PostgreSQL needs", "psycopg", "postgres"))
    if config.telemetry.otlp_endpoint:
        exporter = "opentelemetry.exporter.otlp.proto.http"
        lines.append(missing_extra("telemetry.otlp_endpoint: spans need", exporter, "otel"))
    return [line for line in lines if line]


def missing_extra(what: str, module: str, extra: str) -> str:
    """Says that `what` needs the module, and how to install it; empty where it is installed."""
    try:
        is_installed = find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing too
        is_installed = False
    return "" if is_installed else f"{what} {module}: pip install 'headgate[{extra}]'"
