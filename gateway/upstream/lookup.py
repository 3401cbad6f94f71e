"""The addresses behind a server's name, looked up in threads of their own.

The system's resolver blocks its thread for as long as it likes, half a minute where no nameserver answers, and can't
be cancelled. In the event loop's shared thread pool a few such lookups would block all other names, journal reads and
file reads. With threads of their own, a name that isn't found delays only those who want it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

MAX_THREADS = 4
"""Most lookups of one name that run at the same time."""
FRESH_S = 5.0
"""Seconds after which a running lookup may never end: the next caller then starts another, if a thread is left."""

P = TypeVar("P", bound=asyncio.BaseProtocol)
Result = Sequence[str] | Exception


class Name:
    """One host name, or an IP address, which needs no lookup. An instance belongs to one event loop."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._address = _is_address(host)
        self._threads = 0
        self._newest: asyncio.Future[Result] | None = None
        self._begun_s = 0.0

    @property
    def is_running(self) -> bool:
        """Whether the lookup that began last is still running."""
        return self._newest is not None and not self._newest.done()

    async def addresses(self) -> Sequence[str]:
        """At least one address, from the lookup that is running or from a new one. Raises OSError or ValueError. It has
        no timeout of its own; a caller that is cancelled doesn't cancel the lookup for the others.
        """
        if self._address:
            return (self.host,)
        lookup = self._newest
        if lookup is None or lookup.done() or (self._is_old() and self._threads < MAX_THREADS):
            lookup = self._look_up()
        result = await asyncio.shield(lookup)
        if isinstance(result, Exception):
            raise result.with_traceback(None)
        return result

    async def connect(
        self, make: Callable[[], P], port: int, tls: ssl.SSLContext | None = None
    ) -> tuple[asyncio.Transport, P]:
        """Connect to the first address that accepts, with this name for TLS. Raises as `addresses` does, and OSError
        where no address accepts.
        """
        loop = asyncio.get_running_loop()
        faults: dict[str, OSError] = {}
        for address in await self.addresses():
            try:
                return await loop.create_connection(
                    make, address, port, ssl=tls, server_hostname=self.host if tls else None
                )
            except ssl.SSLError:
                raise
            except OSError as fault:
                faults[address] = fault
        if len(faults) == 1:
            raise faults.popitem()[1]
        raise OSError("; ".join(f"{address}: {fault}" for address, fault in faults.items()))

    def _is_old(self) -> bool:
        return time.monotonic() - self._begun_s > FRESH_S

    def _look_up(self) -> asyncio.Future[Result]:
        loop = asyncio.get_running_loop()
        lookup: asyncio.Future[Result] = loop.create_future()

        def resolve() -> None:
            result = _resolve(self.host)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._end, lookup, result)

        try:
            threading.Thread(target=resolve, name=f"lookup {self.host}", daemon=True).start()
        except RuntimeError as fault:
            raise OSError(f"no thread is left to look up {self.host}") from fault
        self._threads += 1
        self._newest, self._begun_s = lookup, time.monotonic()
        return lookup

    def _end(self, lookup: asyncio.Future[Result], result: Result) -> None:
        self._threads -= 1
        lookup.set_result(result)


def _resolve(host: str) -> Result:
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except Exception as fault:
        return fault
    return list(dict.fromkeys(str(address[0]) for *_, address in infos))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
