"""The addresses behind a server's name, looked up in threads that do nothing else.

The system's resolver blocks its thread for as long as it likes, half a minute where no nameserver answers, and can't
be told to stop. In the threads that an event loop shares a few such lookups would keep every other name, every read of
the journal and every file waiting. Here a name that isn't found delays only those who want it.
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

MOST_THREADS = 4
"""Of one name, each with a lookup that hasn't ended."""
FRESH_S = 5.0
"""A lookup that has taken this long may be lost: who asks now is given another one, if a thread is left."""

P = TypeVar("P", bound=asyncio.BaseProtocol)
Found = Sequence[str] | Exception


class Name:
    """One host name; an address stands for itself. Belongs to one event loop."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._address = _is_address(host)
        self._threads = 0
        self._newest: asyncio.Future[Found] | None = None
        self._begun_s = 0.0

    @property
    def is_sought(self) -> bool:
        """The lookup that began last has not ended."""
        return self._newest is not None and not self._newest.done()

    async def addresses(self) -> Sequence[str]:
        """By the lookup that is under way, or by a new one; at least one address. Raises OSError or ValueError. Has no
        limit of its own; whoever leaves leaves it to the others.
        """
        if self._address:
            return (self.host,)
        lookup = self._newest
        if lookup is None or lookup.done() or (self._is_old() and self._threads < MOST_THREADS):
            lookup = self._look_up()
        found = await asyncio.shield(lookup)
        if isinstance(found, Exception):
            raise found.with_traceback(None)
        return found

    async def connect(
        self, make: Callable[[], P], port: int, tls: ssl.SSLContext | None = None
    ) -> tuple[asyncio.Transport, P]:
        """A connection to the first of the addresses that takes one, under this name for TLS. Raises as `addresses`."""
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

    def _look_up(self) -> asyncio.Future[Found]:
        loop = asyncio.get_running_loop()
        lookup: asyncio.Future[Found] = loop.create_future()

        def look() -> None:
            found = _found(self.host)
            with suppress(RuntimeError):  # nobody waits for it any more: the loop is closed
                loop.call_soon_threadsafe(self._end, lookup, found)

        try:
            threading.Thread(target=look, name=f"lookup {self.host}", daemon=True).start()
        except RuntimeError as fault:
            raise OSError(f"no thread is left to look up {self.host}") from fault
        self._threads += 1
        self._newest, self._begun_s = lookup, time.monotonic()
        return lookup

    def _end(self, lookup: asyncio.Future[Found], found: Found) -> None:
        self._threads -= 1
        lookup.set_result(found)


def _found(host: str) -> Found:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except Exception as fault:
        return fault
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
