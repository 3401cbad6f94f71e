"""Checks a key that is made while the gateway runs by the rules for keys in the configuration file."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.config.check import unshared
from gateway.config.shape import unreadable
from gateway.config.types import MOST_USD, Config
from gateway.journal.record import KeyRecord

LONGEST_NAME = 200


def faults(key: KeyRecord, config: Config) -> Iterator[tuple[str, str]]:
    """Each fault as the field that it is in and a message."""
    for field in ("name", "tenant"):
        if why := name_fault(getattr(key, field)):
            yield field, why
    known = {route.name for route in config.routes} | {model.name for model in config.models}
    if unknown := ", ".join(name for name in key.models if name not in known):
        yield "models", f"neither a route nor a model: {unknown}"
    if key.budget_usd is not None and not 0 <= key.budget_usd <= MOST_USD:
        yield "budget_usd", f"{key.budget_usd} is not an amount of dollars"
    limits = [name for name in ("budget_usd", "rpm", "tpm") if getattr(key, name) is not None]
    if limits and config.server.workers > 1 and (why := unshared(config, [key])):
        yield limits[0], why


def name_fault(name: str) -> str:
    """Why the name is too long or can't be read or typed; empty where it is valid."""
    if len(name) > LONGEST_NAME:
        return f"has {len(name)} characters, more than {LONGEST_NAME}"
    return unreadable(name)
