"""A gateway in front of every kind of provider, each of which serves the same scripted models.

A model is called KIND/SCRIPT, for example `azure/tools`: ids that clients use may hold slashes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.conformance.clients import Sdk
from tests.live import Live, live

PROVIDERS = {"openai": "up", "azure": "az", "azure-v1": "az1", "anthropic": "claude", "scripted": "play",
             "local": "near", "native": "own", "azure-native": "az2"}  # fmt: skip
"""The provider's name by kind; `azure-v1` is Azure's newer API, and `native` serves the Responses API itself."""
KINDS = tuple(kind for kind in PROVIDERS if kind != "azure-native")
WEATHER, TIME = {"city": "Bern", "days": 2}, {"zone": "CET"}
SCRIPTS: dict[str, list[Mapping[str, Any]]] = {
    "echo": [{}],
    "tools": [{"tool_calls": [{"name": "weather", "arguments": WEATHER}, {"name": "time", "arguments": TIME}]}],
    "says": [{"text": "Let me look.", "tool_calls": [{"name": "weather", "arguments": WEATHER}]}],
    "long": [{"text": "one two three four five six seven eight"}],
    "used": [{"text": "dear", "input_tokens": 100, "output_tokens": 7, "cached_tokens": 40}],
}


def names(kind: str, scripts: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": f"{kind}/{script}", "provider": PROVIDERS[kind], "upstream_name": script, "logprobs": True}
        for script in scripts
    ]


OTHER_PROVIDERS = [
    {"name": "az", "kind": "azure", "base_url": "UPSTREAM/azure", "api_key": "${UP_KEY}"},
    {"name": "az1", "kind": "azure", "base_url": "UPSTREAM/openai/v1", "api_key": "${UP_KEY}"},
    {"name": "own", "kind": "openai", "base_url": "UPSTREAM", "api_key": "${UP_KEY}", "responses": True},
    {"name": "az2", "kind": "azure", "base_url": "UPSTREAM/azure", "api_key": "${UP_KEY}", "responses": True},
    {"name": "play", "kind": "scripted", "base_url": "UPSTREAM"},
    {"name": "near", "kind": "local", "base_url": "UPSTREAM"},
]


class House:
    """A gateway with every kind of provider, and the clients opened on it."""

    def __init__(self, gateway: Live) -> None:
        self.gateway = gateway
        self.url = gateway.url
        self.sdks: dict[str, Sdk] = {}

    def sdk(self, kind: str, mode: str = "async", **options: Any) -> Sdk:
        """A new client where options are given, else the shared one of this kind and mode."""
        name = f"{kind}/{mode}/{len(self.sdks) if options else ''}"
        if name not in self.sdks:
            self.sdks[name] = Sdk(kind, mode, self.url, **options)
        return self.sdks[name]

    @property
    def requests(self) -> int:
        """Number of requests that reached an upstream."""
        return self.gateway.upstream.seen.requests

    @property
    def last(self) -> dict[str, Any]:
        """The last request that an upstream received: path, headers, body."""
        return self.gateway.upstream.seen.recent[-1]


@asynccontextmanager
async def house(
    folder: Path, scripts: Mapping[str, Any] | None = None, kinds: tuple[str, ...] = KINDS,
    more: Sequence[Mapping[str, Any]] = (), **extra: Any,
) -> AsyncIterator[House]:
    """Runs a house, and checks afterwards that nothing is held, in flight or connected. `more`: further models."""
    table = {**SCRIPTS, **(scripts or {})}
    models = [model for kind in kinds for model in names(kind, table)] + [dict(model) for model in more]
    async with live(folder, scripts=table, models=models, providers=OTHER_PROVIDERS, **extra) as gateway:
        built = House(gateway)
        try:
            yield built
        finally:
            for sdk in built.sdks.values():
                await sdk.close()
        await gateway.rest()
