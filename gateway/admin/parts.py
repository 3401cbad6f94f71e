"""Adding, changing and removing providers and models while the gateway runs. Secrets are written, but never read out.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

from gateway.admin import changes
from gateway.admin.actor import Actor
from gateway.admin.changes import database
from gateway.admin.services import AdminServices
from gateway.admin.shapes.common import Applied
from gateway.admin.shapes.models import Checked, ModelWanted, ProviderWanted
from gateway.config.overlay import hide
from gateway.config.types import ProviderConfig
from gateway.errors import CallerError, ConfigError, HeadgateError, NotFound, UpstreamError
from gateway.providers import Provider, open_provider

CHECK_S = 5.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}")
_OWN_PROCESS = ("local", "scripted")
_MODELS_AT = {"openai": "/models", "local": "/models", "scripted": "/models", "anthropic": "/v1/models"}


def put_provider(services: AdminServices, who: Actor, name: str, wanted: ProviderWanted) -> Applied:
    """Add or change a provider, in every worker within two seconds. Requests under way are completed as they began.

    Raises Conflict or CallerError.
    """
    _refuse_name(name)
    stated = _of_file(services, name)
    if wanted.kind in _OWN_PROCESS and not wanted.base_url and (stated is None or stated.kind != wanted.kind):
        raise CallerError(
            f"a provider of kind {wanted.kind} without a base_url is a process of this gateway: add it to the "
            "configuration file and restart the gateway",
            param="base_url", status=422,
        )  # fmt: skip
    with database():
        before: dict[str, Any] = services.store.setting(f"provider:{name}") or {}
    value = wanted.model_dump(exclude={"api_key", "headers", "version"})
    with database():  # a refused change must not store its secrets
        if changes.setting(services, f"provider:{name}").version == wanted.version:
            changes.refuse_unsound(services, f"provider:{name}", value)
    value |= _secrets(services, wanted, before, stated)
    return changes.change(services, who, f"provider:{name}", value, wanted.version)


def remove_provider(services: AdminServices, who: Actor, name: str, version: int) -> Applied:
    """Undo all changes to a provider, so that the configuration file's entry, if any, is in force again.

    Raises NotFound where nothing was changed, Conflict, or CallerError.
    """
    return changes.remove(services, who, f"provider:{name}", version)


def put_model(services: AdminServices, who: Actor, name: str, wanted: ModelWanted) -> Applied:
    """Add or change a model, and the set of routes that use it, in one step. Raises Conflict or CallerError."""
    _refuse_name(name)
    value = wanted.model_dump(exclude={"version", "json_schema"})
    value["json"] = wanted.json_schema
    routes = {route.name for route in services.current.routes}
    if unknown := ", ".join(sorted(set(wanted.routes or ()) - routes)):
        raise CallerError(f"no route is called {unknown}", param="routes", status=422)
    if wanted.routes is None:
        del value["routes"]
    return changes.change(services, who, f"model:{name}", value, wanted.version)


def remove_model(services: AdminServices, who: Actor, name: str, version: int) -> Applied:
    """Undo all changes to a model, so that the configuration file's entry, if any, is in force again.

    Raises NotFound where nothing was changed, Conflict, or CallerError.
    """
    return changes.remove(services, who, f"model:{name}", version)


def check_provider(services: AdminServices, who: Actor, name: str) -> Checked:
    """Request the provider's list of models, which tests its address, TLS and API key at no cost. Raises NotFound."""
    config = next((one for one in services.current.providers if one.name == name), None)
    if config is None:
        raise NotFound(f"no provider is called {name!r}")
    began = time.monotonic()
    try:
        status = asyncio.run(_probe(services, config))
    except (HeadgateError, ConfigError, OSError) as fault:
        why = fault.message if isinstance(fault, HeadgateError) else str(fault)
        return Checked(ok=False, detail=f"no answer: {why}")
    latency_s = time.monotonic() - began
    if status in (401, 403):
        return Checked(ok=False, detail=f"it answers, but refuses the API key (status {status})", latency_s=latency_s)
    if status >= 500:
        return Checked(ok=False, detail=f"it answers with an error (status {status})", latency_s=latency_s)
    return Checked(ok=True, detail=f"it answers (status {status})", latency_s=latency_s)


async def _probe(services: AdminServices, config: ProviderConfig) -> int:
    """The status of the response. Raises UpstreamError, ConfigError or OSError."""
    provider: Provider = open_provider(config, services.config.server)
    path = _MODELS_AT.get(config.kind, f"/openai/models?api-version={config.api_version}")
    try:
        response = await provider.get(path, timeout_s=CHECK_S)
        try:
            await response.read(1 << 20, timeout_s=CHECK_S)
        except UpstreamError:
            pass  # only the status matters
        return int(response.status)
    finally:
        await provider.aclose()


def _secrets(
    services: AdminServices, wanted: ProviderWanted, before: dict[str, Any], stated: ProviderConfig | None
) -> dict[str, Any]:
    """References to the provider's secrets: a new secret is stored, and the reference of one left out is kept."""
    found: dict[str, Any] = {}
    if wanted.api_key is not None:
        found["api_key"] = hide(services.run_dir, wanted.api_key)
    elif "api_key" in before:
        found["api_key"] = before["api_key"]
    headers: dict[str, str] = {}
    for name, text in wanted.headers.items():
        known = before.get("headers", {}).get(name)
        if text is not None:
            headers[name] = hide(services.run_dir, text)
        elif known is not None:
            headers[name] = known
        elif stated is not None and name in stated.headers:
            headers[name] = hide(services.run_dir, str(stated.headers[name]))
        else:
            raise CallerError(f"header {name!r} has no stored value: send one", param="headers", status=422)
    if headers or before.get("headers") or (stated is not None and stated.headers):
        found["headers"] = headers
    return found


def _of_file(services: AdminServices, name: str) -> ProviderConfig | None:
    return next((one for one in services.config.providers if one.name == name), None)


def _refuse_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise CallerError(
            "a name starts with a letter or digit, and has at most 100 letters, digits, and . _ : / -", param="name",
            status=422,
        )  # fmt: skip
