"""The official clients, sync and async behind one interface, so that one test covers both.

    sdk = Sdk("openai", "sync", url)
    answer = await sdk.do("chat.completions.create", model=..., messages=...)
    events = await sdk.events("chat.completions.create", model=..., messages=..., stream=True)
    events, final = await sdk.helped("chat.completions.stream", "get_final_completion", model=..., messages=...)

A sync client runs in a thread of its own, as the gateway lives in this event loop.
"""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import Callable
from typing import Any

import anthropic
import openai

MODES = ("async", "sync")
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Shared, since loading the machine's certificates for every client would take longer than the tests."""
_AZURE = {"api_version": "2024-10-21"}


class Sdk:
    """One client of one kind (openai, azure, anthropic) in one mode (async, sync)."""

    def __init__(self, kind: str, mode: str, url: str, **options: Any) -> None:
        self.is_async = mode == "async"
        package: Any = anthropic if kind == "anthropic" else openai
        name = {"openai": "OpenAI", "azure": "AzureOpenAI", "anthropic": "Anthropic"}[kind]
        http = package.DefaultAsyncHttpxClient if self.is_async else package.DefaultHttpxClient
        make = getattr(package, f"Async{name}" if self.is_async else name)
        where = {"openai": {"base_url": url + "/v1"}, "anthropic": {"base_url": url},
                 "azure": {"azure_endpoint": url, **_AZURE}}[kind]  # fmt: skip
        defaults = {"api_key": "k", "max_retries": 0, "http_client": http(verify=_NO_TLS), **where}
        self.client: Any = make(**{**defaults, **options})

    def _find(self, path: str) -> Callable[..., Any]:
        found = self.client
        for name in path.split("."):
            found = getattr(found, name)
        return found

    async def do(self, path: str, *args: Any, **body: Any) -> Any:
        """One call."""
        method = self._find(path)
        return await method(*args, **body) if self.is_async else await asyncio.to_thread(method, *args, **body)

    async def events(self, path: str, **body: Any) -> list[Any]:
        """A call with `stream=True`, read to its end."""
        method = self._find(path)
        if self.is_async:
            return [event async for event in await method(**body)]
        return await asyncio.to_thread(lambda: list(method(**body)))

    async def responded(self, streamed: bool, **body: Any) -> Any:
        """A response: the whole answer, or the one in its stream's last event."""
        if streamed:
            return (await self.events("responses.create", **body, stream=True))[-1].response
        return await self.do("responses.create", **body)

    async def helped(self, path: str, final: str, **body: Any) -> tuple[list[Any], Any]:
        """A call of a stream helper: its events, and the result of its method `final`."""
        method = self._find(path)
        if self.is_async:
            async with method(**body) as stream:
                return [event async for event in stream], await getattr(stream, final)()

        def read() -> tuple[list[Any], Any]:
            with method(**body) as stream:
                return list(stream), getattr(stream, final)()

        return await asyncio.to_thread(read)

    async def parsed(self, raw: Any) -> Any:
        """The parsed content of a raw response, which must be awaited only from Anthropic's async client."""
        found = raw.parse()
        return await found if inspect.isawaitable(found) else found

    async def close(self) -> None:
        if self.is_async:
            await self.client.close()
        else:
            self.client.close()
