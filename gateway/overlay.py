"""What operators change while the gateway runs, laid over its configuration file: same keys, same rules.

The whole is read again as if it stood in the file, so nothing gets in that the file could not hold. A secret is not
part of it: the overlay names one by a stamp, and `secrets.json` in the run folder (mode 0600) holds it.
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

from gateway.config import Config, Secret
from gateway.config_load import parse

FILE = "secrets.json"
_STAMP = re.compile(r"\$\{(HGS_[0-9a-f]{16})\}")
_REFERENCE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
Table = dict[str, Any]


class Trial(msgspec.Struct, frozen=True):
    """Knobs before a share of a route's requests."""

    knobs: dict[str, float | None]
    share: float


class Overlay(msgspec.Struct, frozen=True, kw_only=True):
    """By name: the keys that replace those of the configuration's table of that name, or make a new one."""

    providers: dict[str, Table] = {}
    models: dict[str, Table] = {}
    routes: dict[str, Table] = {}
    tenants: dict[str, Table] = {}
    trials: dict[str, Trial] = {}
    """Of routes."""
    members: dict[str, list[str]] = {}
    """Model to the routes it is one of; of models that are not here the routes themselves say so."""


def overlaid(config: Config, overlay: Overlay, kept: Mapping[str, str]) -> tuple[Config | None, list[str]]:
    """The configuration with the overlay on it, or None and all that is wrong. `kept`: secrets by stamp."""
    if not any((overlay.providers, overlay.models, overlay.routes, overlay.tenants, overlay.members)):
        return config, []
    hidden: dict[str, str] = {}
    table = _plain(config, hidden)
    _lay(table.setdefault("providers", []), overlay.providers)
    _lay(table.setdefault("models", []), overlay.models)
    _lay(table.setdefault("routes", []), overlay.routes)
    _lay(table.setdefault("auth", {}).setdefault("tenants", []), overlay.tenants)
    _join(table["routes"], overlay.members)
    lost = sorted(set(_STAMP.findall(str(overlay.providers))) - set(kept))
    if lost:
        return None, [f"providers: a secret of theirs is not on this machine ({FILE} has no {lost[0]})"]
    return parse(table, {**os.environ, **kept, **hidden})


def _lay(tables: list[Table], changes: Mapping[str, Table]) -> None:
    """A table of that name changes (the first, where a model has several deployments); else there is a new one."""
    for name, change in changes.items():
        found = next((one for one in tables if one["name"] == name), None)
        if found is None:
            tables.append({"name": name, **change})
        else:
            found |= change


def _join(routes: list[Table], members: Mapping[str, list[str]]) -> None:
    for model, names in members.items():
        for route in routes:
            others = [one for one in route.get("models", []) if one != model]
            wanted, has = route["name"] in names, model in route.get("models", [])
            if wanted != has:
                route["models"] = [*others, model] if wanted else others


def _plain(value: Any, hidden: dict[str, str]) -> Any:
    """As the file's document: defaults left out, every secret as the name of a variable in `hidden`."""
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
    """By field. msgspec reads a struct's annotations anew each time, which costs more than all the rest."""
    return {field.name: field.default for field in msgspec.structs.fields(kind)}


def read_secrets(run_dir: str | Path) -> dict[str, str]:
    """By stamp; none where none was ever written."""
    try:
        return msgspec.json.decode((Path(run_dir) / FILE).read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}


def hide(run_dir: str | Path, text: str) -> str:
    """Puts a secret away; what to write in its place. A reference to a variable, `${NAME}`, is none itself."""
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
