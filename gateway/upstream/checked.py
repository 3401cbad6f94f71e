"""Event hooks for httpx clients that apply the check of `reach` to every connection, before a byte of a request leaves.

They check the address that was connected to and not what a resolver answered before, since a second lookup may differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from gateway.upstream.reach import refusal

_CONNECTED = "connection.connect_tcp.complete"
Hooks = dict[str, list[Callable[..., Any]]]


def checked(*, inner: bool) -> Hooks:
    """The `event_hooks` of an `httpx.Client` whose requests raise ConnectError for an address that is refused. With
    `inner`, addresses of a private network are allowed.
    """

    def trace(event: str, info: dict[str, Any]) -> None:
        if event == _CONNECTED and (why := _refusal_of_peer(info, inner)):
            info["return_value"].close()
            raise httpx.ConnectError(why)

    def add_trace(request: httpx.Request) -> None:
        request.extensions["trace"] = trace

    return {"request": [add_trace]}


def checked_async(*, inner: bool) -> Hooks:
    """The same hooks for an `httpx.AsyncClient`."""

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event == _CONNECTED and (why := _refusal_of_peer(info, inner)):
            await info["return_value"].aclose()
            raise httpx.ConnectError(why)

    async def add_trace(request: httpx.Request) -> None:
        request.extensions["trace"] = trace

    return {"request": [add_trace]}


def _refusal_of_peer(info: dict[str, Any], inner: bool) -> str:
    return refusal(info["return_value"].get_extra_info("server_addr")[0], inner=inner)
