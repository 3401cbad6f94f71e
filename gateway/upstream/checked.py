"""For clients of httpx: the check of `reach` on every connection, before a byte of a request leaves.

It looks at the address that was connected to, not at what a resolver answered before, so no second answer can differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from gateway.upstream.reach import refusal

_CONNECTED = "connection.connect_tcp.complete"
Hooks = dict[str, list[Callable[..., Any]]]


def checked(*, inner: bool) -> Hooks:
    """`event_hooks` of a Client, whose requests raise ConnectError where the address is not for us. `inner`: it may be
    one of an inner network.
    """

    def look(event: str, told: dict[str, Any]) -> None:
        if event == _CONNECTED and (why := _refused(told, inner)):
            told["return_value"].close()
            raise httpx.ConnectError(why)

    def watch(request: httpx.Request) -> None:
        request.extensions["trace"] = look

    return {"request": [watch]}


def checked_async(*, inner: bool) -> Hooks:
    """The same of an AsyncClient."""

    async def look(event: str, told: dict[str, Any]) -> None:
        if event == _CONNECTED and (why := _refused(told, inner)):
            await told["return_value"].aclose()
            raise httpx.ConnectError(why)

    async def watch(request: httpx.Request) -> None:
        request.extensions["trace"] = look

    return {"request": [watch]}


def _refused(told: dict[str, Any], inner: bool) -> str:
    return refusal(told["return_value"].get_extra_info("server_addr")[0], inner=inner)
