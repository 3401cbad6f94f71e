"""Reads the load of inference servers (vLLM, SGLang, llama-server, Ray Serve, transformers) from their own reports.

The requests that this gateway has in flight say little about an engine that other clients use too. So every `EVERY_S`
seconds its health and metrics pages are read, and routers see the wait behind its queue, whoever filled it. An engine
that refuses connections or reports itself unhealthy gets no requests, before one fails; an engine that reports nothing
is judged by its answers, as any provider is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gateway.attempt import Sender
from gateway.errors import UpstreamError
from gateway.fleet import Deployment, EngineReport, Fleet
from gateway.providers import Provider
from local_models.backends import Load

EVERY_S = 2.0
WITHIN_S = 2.0
"""Longest wait for a page, in seconds."""
MAX_PAGE_BYTES = 4 * 1024 * 1024
DOWN = frozenset({"connect", "reset"})
"""Failures that mean that no engine answers there."""
log = logging.getLogger("headgate.engines")


class Engines:
    """Reads the engines' reports for one worker."""

    def __init__(self, fleet: Fleet, sender: Sender) -> None:
        self._fleet = fleet
        self._sender = sender
        self._silent = set[str]()
        """Providers for which it was already logged that their page shows no load."""

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            engines = [one for one in self._sender.providers.values() if one.engine is not None]
            await asyncio.gather(*map(self.look, engines))
            await asyncio.sleep(EVERY_S)

    async def look(self, provider: Provider) -> None:
        """Read the engine's pages, and give each of the provider's deployments its report."""
        assert provider.engine is not None
        is_up = await self._is_up(provider, provider.engine.health_path)
        page = await self._page(provider, provider.engine.metrics_path) if is_up else ""
        for one in self._fleet.all():
            if one.provider == provider.name:
                one.report = self._report(provider, one, is_up, page)

    def _report(self, provider: Provider, deployment: Deployment, is_up: bool, page: str) -> EngineReport:
        assert provider.engine is not None
        load = provider.engine.read_load(page, deployment.upstream_name) if page else Load()
        if is_up and load.waiting is None and provider.name not in self._silent:
            self._silent.add(provider.name)
            hint = provider.engine.how_to_measure
            log.warning("provider %s does not report its load%s", provider.name, f": {hint}" if hint else "")
        return EngineReport(is_up, load.waiting, load.running)

    async def _is_up(self, provider: Provider, path: str) -> bool:
        """False if the health page says so or nothing listens there. An engine too busy to answer in time is up."""
        try:
            response = await provider.look(path, timeout_s=WITHIN_S)
            await response.read(MAX_PAGE_BYTES, timeout_s=WITHIN_S)
        except UpstreamError as error:
            return error.failure not in DOWN
        return response.status < 500

    async def _page(self, provider: Provider, path: str | None) -> str:
        """The metrics page; empty if there is none."""
        if path is None:
            return ""
        try:
            response = await provider.look(path, timeout_s=WITHIN_S)
            body = await response.read(MAX_PAGE_BYTES, timeout_s=WITHIN_S)
        except UpstreamError:
            return ""
        return body.decode("utf-8", "replace") if response.status == 200 else ""


def engine_waits(fleet: Fleet) -> Callable[[], dict[tuple[str, ...], float]]:
    """For the metrics: requests that wait in each engine's queue, by model and provider."""
    return lambda: {
        (one.model, one.provider): one.report.waiting
        for one in fleet.all()
        if one.report is not None and one.report.waiting is not None
    }
