"""The overlay: what operators change while the gateway runs. It overrides the configuration file, with the same keys
and rules.

The file and the overlay together are checked as one file would be, so the overlay can hold nothing that a file could
not. Secrets are not part of it: the overlay refers to each by a random name, and `secrets.json` in the run folder (mode
0600) holds its value.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from gateway.config.load import parse
from gateway.config.types import Config, Secret

FILE = "secrets.json"
_STAMP = re.compile(r"\$\{(HGS_[0-9a-f]{16})\}")
_REFERENCE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
Table = dict[str, Any]


class Trial(msgspec.Struct, frozen=True):
    """Knobs that are tried on a share of a route's requests."""

    knobs: dict[str, float | None]
    share: float


class Overlay(msgspec.Struct, frozen=True, kw_only=True):
    """For each kind of table, by the table's name, the keys that replace the file's, or make a new table."""

    providers: dict[str, Table] = {}
    models: dict[str, Table] = {}
    routes: dict[str, Table] = {}
    tenants: dict[str, Table] = {}
    trials: dict[str, Trial] = {}
    """By route."""
    members: dict[str, list[str]] = {}
    """By model, the routes that it belongs to. Of models that are not listed here, the routes' own lists count."""


def overlaid(config: Config, overlay: Overlay, kept: Mapping[str, str]) -> tuple[Config | None, list[str]]:
    """The configuration with the overlay applied, or None and every fault in it. `kept` are the secrets by name."""
    if not any((overlay.providers, overlay.models, overlay.routes, overlay.tenants, overlay.members)):
        return config, []
    hidden: dict[str, str] = {}
    table = _plain(config, hidden)
    _lay(table.setdefault("providers", []), overlay.providers)
    _lay(table.setdefault("models", []), overlay.models)
    _lay(table.setdefault("routes", []), overlay.routes)
    _lay(table.setdefault("auth", {}).setdefault("tenants", []), overlay.tenants)
    _join(table["routes"], overlay.members)
    missing = sorted(set(_STAMP.findall(str(overlay.providers))) - set(kept))
    if missing:
        return None, [f"providers: one of their secrets is not on this machine ({FILE} has no {missing[0]})"]
    return parse(table, {**os.environ, **kept, **hidden})


def _lay(tables: list[Table], changes: Mapping[str, Table]) -> None:
    """Change the table of each name (the first one where a model has several deployments), or append a new one."""
    for name, change in changes.items():
        table = next((one for one in tables if one["name"] == name), None)
        if table is None:
            tables.append({"name": name, **change})
        else:
            table |= change


def _join(routes: list[Table], members: Mapping[str, list[str]]) -> None:
    for model, names in members.items():
        for route in routes:
            others = [one for one in route.get("models", []) if one != model]
            belongs, is_listed = route["name"] in names, model in route.get("models", [])
            if belongs != is_listed:
                route["models"] = [*others, model] if belongs else others


def _plain(value: Any, hidden: dict[str, str]) -> Any:
    """The value as it would be in a file: without defaults, and with each secret as a variable whose value is added to
    `hidden`.
    """
    if isinstance(value, Secret):
        if not value:
            return ""
        name = f"HGF_{len(hidden)}"
        hidden[name] = str(value)
        return f"${{{name}}}"
    if isinstance(value, msgspec.Struct):
        defaults = _defaults(type(value))
        stated = {name: getattr(value, name) for name in defaults}
        return {name: _plain(one, hidden) for name, one in stated.items() if one != defaults[name]}
    if isinstance(value, dict):
        return {name: _plain(one, hidden) for name, one in value.items()}
    return [_plain(one, hidden) for one in value] if isinstance(value, list | tuple) else value


@cache
def _defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Default values by field, cached because msgspec reads a struct's annotations anew each time, which is slow."""
    return {field.name: field.default for field in msgspec.structs.fields(kind)}


def read_secrets(run_dir: str | Path) -> dict[str, str]:
    """The secrets by name; empty where there is no file."""
    try:
        return msgspec.json.decode((Path(run_dir) / FILE).read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}


def hide(run_dir: str | Path, text: str) -> str:
    """Store a secret and return the reference to write in its place. An empty text and a reference to a variable,
    `${NAME}`, are returned as they are.
    """
    if not text or _REFERENCE.fullmatch(text):
        return text
    kept = read_secrets(run_dir)
    stamp = f"HGS_{secrets.token_hex(8)}"
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{FILE}.{os.getpid()}.new"
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(msgspec.json.encode({**kept, stamp: text}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, folder / FILE)
    return f"${{{stamp}}}"
