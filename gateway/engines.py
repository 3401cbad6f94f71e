"""Engines that somebody else runs (vLLM, SGLang, llama-server, Ray Serve, transformers): how busy each is, by its own
word.

What this gateway has under way says little of an engine that others ask too. So every few seconds its health and its
metrics page are read, and routers learn the wait behind its queue, whoever filled it. An engine that refuses
connections or says that it is not well is left alone before a request fails; one that says nothing is judged by its
answers, as any provider is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gateway.attempt import Sender
from gateway.errors import UpstreamError
from gateway.fleet import Deployment, Fleet, Told
from gateway.providers import Provider
from local_models.backends import Load

EVERY_S = 2.0
WITHIN_S = 2.0
MAX_PAGE_BYTES = 4 * 1024 * 1024
DOWN = frozenset({"connect", "reset"})
log = logging.getLogger("headgate.engines")


class Engines:
    """One worker's looks at them."""

    def __init__(self, fleet: Fleet, sender: Sender) -> None:
        self._fleet = fleet
        self._sender = sender
        self._silent = set[str]()
        """Providers of which the log says already that their page tells no load."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            engines = [one for one in self._sender.providers.values() if one.engine is not None]
            await asyncio.gather(*map(self.look, engines))
            await asyncio.sleep(EVERY_S)

    async def look(self, provider: Provider) -> None:
        """Every deployment there learns what its engine says now; nothing where it says nothing."""
        assert provider.engine is not None
        is_up = await self._is_up(provider, provider.engine.health_path)
        page = await self._page(provider, provider.engine.metrics_path) if is_up else ""
        for one in self._fleet.all():
            if one.provider == provider.name:
                one.told = self._told(provider, one, is_up, page)

    def _told(self, provider: Provider, one: Deployment, is_up: bool, page: str) -> Told:
        assert provider.engine is not None
        load = provider.engine.read_load(page, one.upstream_name) if page else Load()
        if is_up and load.waiting is None and provider.name not in self._silent:
            self._silent.add(provider.name)
            hint = provider.engine.how_to_measure
            log.warning("provider %s does not tell its load%s", provider.name, f": {hint}" if hint else "")
        return Told(is_up, load.waiting, load.running)

    async def _is_up(self, provider: Provider, path: str) -> bool:
        """False where it says so or nobody is there; an engine too busy to answer in time is up."""
        try:
            response = await provider.look(path, timeout_s=WITHIN_S)
            await response.read(MAX_PAGE_BYTES, timeout_s=WITHIN_S)
        except UpstreamError as error:
            return error.failure not in DOWN
        return response.status < 500

    async def _page(self, provider: Provider, path: str | None) -> str:
        if path is None:
            return ""
        try:
            response = await provider.look(path, timeout_s=WITHIN_S)
            body = await response.read(MAX_PAGE_BYTES, timeout_s=WITHIN_S)
        except UpstreamError:
            return ""
        return body.decode("utf-8", "replace") if response.status == 200 else ""


def engine_waits(fleet: Fleet) -> Callable[[], dict[tuple[str, ...], float]]:
    """For the metrics: requests that wait in each engine, whoever sent them."""
    return lambda: {
        (one.model, one.provider): one.told.waiting
        for one in fleet.all()
        if one.told is not None and one.told.waiting is not None
    }
